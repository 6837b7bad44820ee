"""A process that has imported everything, and copies itself for every command that it is given.

So a command starts in hundredths of a second, and random moments are in its work and not in its
imports. What is killed is a real process, with all that it has started. Graphs for ONNX that the
nursery has traced itself (`here`) are not traced again: that takes most of a small export's time,
and writes nothing.

On standard input a line of JSON for each command: `argv`, `log`; `place`, the folder that it
publishes in, and `mark`, a file that it publishes; `kill_after`, seconds since the phase `phase` of
`PHASES` began, or null; `here`. On standard output a line for each that ended: `status`, negative
for a signal; `phases`, how long before the end each of them had begun.
"""

import importlib
import json
import os
import signal
import sys
import threading
import time

from tqdm import tqdm

# Of a command: all of it; since there is a temporary folder beside its target; since names change,
# the folder's or the mark's.
PHASES = ("run", "writing", "publishing")
_LONGEST = 600.0  # seconds, after which a command that should come to its end is taken for stuck
_STEP = 0.0002  # seconds between looks
# The commands, and what they import where they need it.
_IMPORTED = (
    "lrqat.__main__", "lrqat.cli.program", "lrqat.cli.train", "lrqat.cli.export",
    "lrqat.cli.inspect", "lrqat.training.run", "exporters.gguf", "exporters.onnx",
    "transformers.models.llama.modeling_llama", "matplotlib.backends.backend_agg",
    "PIL.JpegImagePlugin",
)  # fmt: skip


def main():
    for name in _IMPORTED:
        importlib.import_module(name)
    from tests.support.onnx_exports import reused_traces

    # Its own is shared with the copies, and one that is killed may hold it: the others would wait.
    tqdm.set_lock(threading.RLock())
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")  # commands print elsewhere
    print(json.dumps("ready"), file=answers, flush=True)
    with reused_traces():
        for line in sys.stdin:
            order = json.loads(line)
            here = order.pop("here")
            answer = {"status": _here(order["argv"], order["log"])} if here else _in_copy(**order)
            print(json.dumps(answer), file=answers, flush=True)


def _in_copy(argv, log, place, mark, kill_after, phase):
    """Run a command in a copy of this process, and kill it when it is time; the answer."""
    before = _identity(mark)
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.setpgid(0, 0)
            with open(os.devnull, "rb") as nothing:
                os.dup2(nothing.fileno(), 0)
            status = _here(argv, log)
        finally:
            os._exit(status)
    os.setpgid(child, child)  # whoever comes first
    ended, began = 0, {"run": time.monotonic()}
    while not ended:
        now = time.monotonic()
        if "publishing" not in began:
            began |= dict.fromkeys(_phases(place, mark, before) - began.keys(), now)
        after = _LONGEST if kill_after is None else kill_after
        if now >= began.get(phase, now) + after:
            os.killpg(child, signal.SIGKILL)
            kill_after = float("inf")
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(_STEP)
    now = time.monotonic()
    phases = {name: now - began.get(name, now) for name in PHASES}
    return {"status": os.waitstatus_to_exitcode(status), "phases": phases}


def _phases(place, mark, before):
    """Those that have begun, besides the first, as far as can be seen."""
    endings = {name.rpartition(".")[2] for name in os.listdir(place)}
    if endings & {"publishing", "replaced"} or _identity(mark) != before:
        return {"writing", "publishing"}
    return {"writing"} if "staging" in endings else set()


def _identity(mark):
    try:
        return os.stat(mark).st_ino
    except FileNotFoundError:
        return None


def _here(argv, log):
    """The program `lrqat` from its arguments to its exit status."""
    from lrqat.__main__ import main as program

    with open(log, "wb") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    sys.argv = ["lrqat", *argv]
    try:
        program()
        return 0
    except SystemExit as done:
        return done.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    main()
