"""A process that is killed, or whose disk fails, before any one of its operations on files."""

import errno
import itertools
import os
import signal
import sys

_EVENTS = {
    "open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.listdir",
    "os.scandir", "os.truncate", "fcntl.flock", "shutil.rmtree", "made_faults",
}  # fmt: skip
FAULTS = ("kill", "error")  # errors in turn: the disk is full, the disk is broken
_ERRORS = (errno.ENOSPC, errno.EIO)


def run(action, fault=None, at=-1):
    """Run `action` in a process of its own, with a fault before its operation number `at`.

    Args:
        action: a function without arguments.
        fault: one of `FAULTS`.
        at: which operation; -1 for none.

    Returns:
        Whether the process came to its end with so few operations that there was no fault.
    """
    child = os.fork()
    if child == 0:
        try:
            _in_child(action, fault, at)
        finally:
            os._exit(1)  # the fault, or its consequence
    _, status = os.waitpid(child, 0)
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0


def every_fault(action, fault):
    """Yield the number of each operation, after a run that met the fault there."""
    for at in itertools.count():
        if run(action, fault, at):
            assert at > 3, "the action did nothing"
            return
        yield at


def _in_child(action, fault, at):
    from lrqat.atomic_files import folders

    left = at

    def hook(event, arguments):
        nonlocal left
        if event not in _EVENTS:
            return
        left -= 1
        if left == -1 and at >= 0:
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            number = _ERRORS[at % 2]
            raise OSError(number, os.strerror(number))

    # These two tell nobody.
    for owner, name in ((os, "fsync"), (folders, "exchange")):
        setattr(owner, name, _announced(getattr(owner, name)))
    sys.addaudithook(hook)
    action()
    reached = at >= 0 and left < 0
    os._exit(1 if reached else 0)


def _announced(function):
    def call(*arguments):
        sys.audit("made_faults")
        return function(*arguments)

    return call
