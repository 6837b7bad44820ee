"""Failures of machine, terminal and environment: one message, status 2."""

import errno
import io
import os
import subprocess
import sys

import pytest

from lrqat.cli import command
from lrqat.cli.failures import explanation
from lrqat.errors import UserError, refusing
from tests.support.paths import ROOT

SAID = {
    MemoryError(): "memory ran out",
    RuntimeError("[enforce fail] Allocator: can't allocate memory: you"): "memory ran out",
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"): "memory ran out",
    RuntimeError("std::bad_alloc"): "memory ran out",
    OSError(errno.EIO, "Input/output error"): "Input/output error",
    OSError(errno.ENOSPC, "No space left on device"): "writing failed: No space left on device",
    PermissionError(errno.EACCES, "Permission denied", "a.txt"): "a.txt: Permission denied",
    OSError("We could not connect"): "We could not connect",
    BrokenPipeError(errno.EPIPE, "Broken pipe"): "standard output was closed",
    UserError("what to do"): "what to do",
}  # fmt: skip


@pytest.mark.parametrize("error", SAID, ids=repr)
def test_what_a_user_can_mend_is_said(error):
    assert SAID[error] in explanation(error)


@pytest.mark.parametrize("error", [e for e in SAID if "memory" in SAID[e]], ids=repr)
def test_memory_that_runs_out_while_a_model_is_loaded_is_no_fault_of_the_model(error):
    with pytest.raises(type(error)) as raised, refusing(UserError, "cannot load x", "mend it"):
        raise error
    assert raised.value is error


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("shape"), KeyError("x")])
def test_our_own_faults_keep_their_traceback(error):
    assert explanation(error) is None


PROGRAM = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from lrqat.__main__ import main; main()"


def shell(line):
    environment = os.environ | {"PROGRAM": PROGRAM, "PYTHON": sys.executable}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize(
    ("redirection", "said"),
    [("> /dev/full", "No space left on device"), (">&-", "standard output was closed")],
)
def test_output_that_cannot_be_written_is_one_message(redirection, said):
    done = shell(f'"$PYTHON" -c "$PROGRAM" --help {redirection}')
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_terminal_escapes_in_messages_are_not_sent(capsys):
    out = command.Output(as_json=False)
    out.console.file = io.StringIO()
    out.say("a\x1b[2Jb")
    out.table("t\x07", ("a", "b"), [("\x1b]0;title\x07", 1)])
    sent = out.console.file.getvalue()
    assert "a\ufffd[2Jb" in sent
    assert "\x1b" not in sent
    assert "\x07" not in sent
    out.warn("w\x1b[31m")
    assert "w\ufffd[31m" in capsys.readouterr().err


def test_an_error_with_escapes_is_shown_without(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())

    def main(argv):
        raise UserError("no \x1b[1A\x1b[2K such tensor")

    with pytest.raises(SystemExit) as status:
        command.run(main)
    assert status.value.code == 2
    assert sys.stderr.getvalue() == "error: no \ufffd[1A\ufffd[2K such tensor\n"
