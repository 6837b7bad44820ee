"""What an export costs, beside what llama.cpp's own tools cost for the same model.

Each contender is a process of its own, so that nobody pays for what another has loaded: seconds of
wall and of CPU, and the largest resident set, both of the process and of those that it starts. The
resident set is looked at every 20 ms; pages that processes share count in each.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from lrqat.errors import OutputError, UserError

_POLL_SECONDS = 0.02
_EXPORT = """
import sys
from exporters import gguf
from lrqat.checkpoint.reader import Checkpoint
gguf.write(gguf.plan(Checkpoint.open(sys.argv[1])), sys.argv[2])
"""


@dataclass(frozen=True)
class Cost:
    """What a process took.

    Attributes:
        seconds: of wall time.
        cpu_seconds: of its threads and processes together.
        peak_bytes: largest resident set; 0 if it ended before it was looked at.
        bytes: size of the file it wrote.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return asdict(self)


def measure_exports(
    checkpoint: Path, folder: Path, llama_cpp: Path | None = None, quantize: Path | None = None
) -> dict[str, Cost]:
    """Export `checkpoint` to GGUF with ours and, if given, with llama.cpp's tools.

    Ours opens the checkpoint (all hashes), plans, writes and verifies. Upstream's way is
    convert_hf_to_gguf.py to F16, then llama-quantize to Q4_0, which derives every scale anew and
    verifies nothing.

    Args:
        checkpoint: folder of a fused checkpoint.
        folder: where the files go; they are deleted again.
        llama_cpp: llama.cpp's source tree.
        quantize: its llama-quantize.

    Returns:
        Costs by contender: "lrqat", and "convert" and "quantize" if both paths are given.

    Raises:
        UserError: a contender failed; the end of what it said is in the message.
    """
    ours, half, theirs = (folder / name for name in ("ours.gguf", "half.gguf", "theirs.gguf"))
    commands: dict[str, tuple[list[str], Path]] = {
        "lrqat": ([sys.executable, "-c", _EXPORT, str(checkpoint), str(ours)], ours)
    }
    if llama_cpp and quantize:
        script = str(llama_cpp / "convert_hf_to_gguf.py")
        convert = [sys.executable, script, str(checkpoint), "--outtype", "f16", "--outfile"]
        commands["convert"] = ([*convert, str(half)], half)
        commands["quantize"] = ([str(quantize), str(half), str(theirs), "Q4_0"], theirs)
    try:
        return {name: _run(command, made) for name, (command, made) in commands.items()}
    finally:
        for path in (ours, half, theirs):
            path.unlink(missing_ok=True)


def _run(command: Sequence[str], made: Path) -> Cost:
    log = made.with_suffix(".log")
    peak, start = 0, time.monotonic()
    try:
        with log.open("wb") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            peak = max(peak, _resident(process.pid))
            time.sleep(_POLL_SECONDS)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - start
        if process.returncode or not made.is_file():
            tail = log.read_text(encoding="utf-8", errors="replace")[-500:]
            raise UserError(f"{Path(command[0]).name} failed ({process.returncode}): {tail}")
    except FileNotFoundError as error:
        raise OutputError(f"cannot run or write {error.filename}; check the paths") from None
    finally:
        log.unlink(missing_ok=True)
    return Cost(seconds, usage.ru_utime + usage.ru_stime, peak, made.stat().st_size)


def _resident(process: int) -> int:
    """Bytes in memory of a process and its descendants; 0 of those that have ended."""
    found = 0
    with suppress(psutil.Error):
        root = psutil.Process(process)
        for member in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                found += member.memory_info().rss
    return found
