"""Running the commands as real processes, and reading what they print."""

import json
import subprocess
import sys

from tests.support.paths import ROOT


def run(tool, *arguments, shell_prefix=""):
    """A real process, from the repository, as in the README."""
    command = [sys.executable, f"tools/{tool}.py", *map(str, arguments)]
    if shell_prefix:
        command = ["bash", "-c", f'{shell_prefix}; exec "$@"', "-", *command]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def last_json(capfd):
    """The one line on standard output."""
    return one_object(capfd.readouterr().out)


def one_object(out):
    assert out.count("\n") == 1, out
    return json.loads(out)
