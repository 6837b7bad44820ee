"""Running a piece of Python in a process of its own that looks at its memory (Linux)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc"
)

_PRELUDE = '''
import json, sys
from pathlib import Path
from lrqat.checkpoint.reader import Checkpoint

def forget_the_peak():
    Path("/proc/self/clear_refs").write_text("5")

def memory(key):
    """Bytes: "VmRSS" is what is resident now, "VmHWM" its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
'''


def run_measured(code, *arguments):
    """The JSON that `code`, after the functions above, prints."""
    command = [sys.executable, "-c", _PRELUDE + code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
