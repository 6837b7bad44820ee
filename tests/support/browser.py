"""Headless Chromium, asked over the DevTools protocol: two pipes, and JSON with a zero behind it.

Source: content/browser/devtools/devtools_pipe_handler.cc of Chromium; devtools-protocol on the web.
"""

import base64
import json
import os
import shutil
import subprocess
from contextlib import contextmanager

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium():
    """The program, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page; `call` sends a command and waits for its answer."""

    def __init__(self, write, read):
        self._write, self._read = write, read
        self._count, self._buffer, self.events = 0, b"", []
        self._session = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters} | self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, path, *, width, dark):
        """Load a file as on a screen of this width, and wait until it is there."""
        self.events.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900,
                  deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def evaluate(self, expression):
        """The value of an expression of JavaScript, as JSON has it."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path=None):
        """The whole page as the bytes of a PNG, and as a file if one is given."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        data = base64.b64decode(taken["data"])
        if path is not None:
            path.write_bytes(data)
        return data

    def _next(self):
        while b"\0" not in self._buffer:
            part = os.read(self._read, 1 << 16)
            assert part, "the browser has ended"
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)


@contextmanager
def browser(program, profile):
    """A `Page` of a browser of its own, whose profile lies in the folder `profile`."""
    to_browser, from_browser = os.pipe(), os.pipe()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--no-first-run", "--remote-debugging-pipe", f"--user-data-dir={profile}"]  # fmt: skip
    command = ["bash", "-c", f'exec 3<&{to_browser[0]} 4>&{from_browser[1]}; exec "$@"', "-",
               program, *flags]  # fmt: skip
    started = subprocess.Popen(
        command, pass_fds=(to_browser[0], from_browser[1]), stderr=subprocess.DEVNULL
    )
    os.close(to_browser[0])
    os.close(from_browser[1])
    try:
        yield Page(to_browser[1], from_browser[0])
    finally:
        started.kill()
        started.wait()
        os.close(to_browser[1])
        os.close(from_browser[0])
