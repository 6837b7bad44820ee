"""A page in headless Chromium: serve a folder, open its page, wait for what the page posts back."""

import functools
import http.server
import queue
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

# No background traffic, which fails on a machine without a network; WebGPU on a CPU if need be.
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-unsafe-webgpu",
    "--enable-features=Vulkan",
    "--ignore-gpu-blocklist",
]


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files, and puts what is posted into a queue."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def __init__(self, *args: Any, posted: "queue.Queue[str]", **kwargs: Any) -> None:
        self.posted = posted
        super().__init__(*args, **kwargs)

    def do_POST(self) -> None:
        """Keep the body."""
        self.posted.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def posted_by(folder: Path, page: str, chromium: str, seconds: float = 120) -> str:
    """What `page`, a file of `folder`, posts first.

    Raises:
        queue.Empty: nothing was posted in `seconds`.
    """
    posted: queue.Queue[str] = queue.Queue()
    handler = functools.partial(_Handler, posted=posted, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        url = f"http://127.0.0.1:{server.server_port}/{page}"
        browser = subprocess.Popen(
            [chromium, *_FLAGS, f"--user-data-dir={profile}", url],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return posted.get(timeout=seconds)
        finally:
            browser.kill()
            browser.wait()
            server.shutdown()
