"""Work on what others wrote in a process that may only use so much memory and time.

Some inputs cost nothing to write and gigabytes or hours to take in, and which they are is for the
library to know that takes them in: a number of labels becomes a dict, a template loops. Such work
is done, or first tried, in a copy of this process that ends when it passes a limit. A copy (fork)
costs some hundredths of a second; where processes cannot be copied, or not safely (Windows, macOS),
there is no limit.
"""

import os
import signal
from collections.abc import Callable

from lrqat.errors import first_line
from lrqat.portable import CAN_COPY, limit_address_space

MEMORY = 1 << 29  # bytes that the process may add to what it began with
_TOO_LONG, _TOO_MUCH = "it takes too long", "it needs too much memory"


def limit_memory(size: int = MEMORY) -> None:
    """Let this process take at most `size` bytes more than now, and write no core file."""
    if CAN_COPY:
        limit_address_space(size)


def end_after(seconds: int) -> None:
    """Let the system end this process then, whatever it is doing; 0: no more."""
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)


def failure_of(work: Callable[[], object], seconds: int) -> str | None:
    """Try `work` in a copy of this process.

    Args:
        work: what is tried; what it returns is lost. It must not compute on several threads.
        seconds: of processor time that it may take.

    Returns:
        None if it can be done, or if there is no way to try it; else what is wrong, in words.
    """
    if not CAN_COPY:
        return None
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        _try(work, seconds, there)
    os.close(there)
    with os.fdopen(here, "rb") as stream:
        said = stream.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return _TOO_LONG if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGALRM) else _TOO_MUCH
    return said or None


def _try(work: Callable[[], object], seconds: int, there: int) -> None:
    """What the copy does; it never returns."""
    try:
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        most = int(used.ru_utime + used.ru_stime) + seconds + 1
        resource.setrlimit(resource.RLIMIT_CPU, (most, most))
        end_after(20 * seconds)  # if it waits and does not compute
        limit_memory()
        for stream in (1, 2):  # a library's complaints come once more, from the process itself
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        work()
        said = ""
    except MemoryError:
        said = _TOO_MUCH
    except BaseException as error:
        said = first_line(error)
    os.write(there, said.encode("utf-8", "replace")[:4000])
    os._exit(0)
