"""What systems do each in their own way: locks, durable names, copies of a process, cores.

Nothing else in the package asks which system this is, but for the exchange of two names
(`lrqat.atomic_files.exchange`) and glibc's allocator (`lrqat.training.allocator`), which are left
out where there are none.
"""

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# A copy of a process that has threads is safe where nobody holds a lock for long, as on Linux.
CAN_COPY = sys.platform == "linux" and hasattr(os, "fork")
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # of the file system


def take_lock(handle: int) -> bool | None:
    """Lock an open file against other processes, without waiting; it is released when closed.

    Returns:
        Whether it is ours now; None where there are no such locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def make_durable(path: Path) -> None:
    """See that a file, or the names in a folder, are on the disk.

    Windows opens no folders; its file systems write names with the files.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if os.name == "nt" and path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    except OSError:
        if os.name != "nt":  # which wants a handle that may write, and has none for a folder
            raise
    finally:
        os.close(handle)


def read_start(handle: int, most: int) -> bytes:
    """The first bytes of an open file."""
    os.lseek(handle, 0, os.SEEK_SET)
    return os.read(handle, most)


def replace_content(handle: int, data: bytes) -> None:
    """Write `data` over all that an open file holds."""
    os.lseek(handle, 0, os.SEEK_SET)
    os.ftruncate(handle, 0)
    os.write(handle, data)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_address_space(more: int) -> None:
    """Let this process take at most `more` bytes than it has now, and write no core file.

    Where the system does not say what it has now, or has no such limit, there is none.
    """
    with suppress(ImportError, OSError):
        import resource

        now = _address_space(resource)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = now + more
        resource.setrlimit(resource.RLIMIT_AS, (most if hard < 0 else min(most, hard), hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _address_space(resource: Any) -> int:
    """Bytes that the process has mapped. Raises OSError where there is no /proc."""
    with open("/proc/self/statm", encoding="ascii") as stream:
        return int(stream.read().split()[0]) * int(resource.getpagesize())
