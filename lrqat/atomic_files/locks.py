"""Who is writing somewhere: a lock that the system drops when its process ends, however it ends.

The lock is a file beside its target, `.NAME.lock`; or `.lock` in it where the target is a folder
with nothing beside it to write to (a mounted volume, somebody else's parent). It says who holds it
and is removed with the lock. One that a killed process left holds nothing back.
"""

import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrqat import portable
from lrqat.atomic_files.refusals import LOCK, explain_os_errors
from lrqat.errors import OutputError
from lrqat.foreign_files import parse_json

# A number alone does not tell processes apart: in every container there is a first one.
_PROGRAM = uuid.uuid4().hex


@contextmanager
def locked(target: Path) -> Iterator[bool]:
    """Keep other processes from writing to `target` while the block runs.

    Yields:
        Whether this call took the lock, so that whatever lies there unfinished belongs to nobody.
        False inside another block of this process, and on a file system without locks.

    Raises:
        OutputError: another process holds it, which is named; or it cannot be written there.
    """
    path = lock_of(target)
    with explain_os_errors(target):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _acquire(path, target)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            path.unlink(missing_ok=True)
            os.close(handle)


def is_pinned(folder: Path) -> bool:
    """Whether an existing folder cannot be given another name: nothing beside it is ours."""
    if not folder.is_dir():
        return False
    return os.path.ismount(folder) or not os.access(folder.parent, os.W_OK)


def lock_of(target: Path) -> Path:
    """Where the lock of `target` is while somebody holds it, or was killed holding it."""
    place = Path(os.path.realpath(target))
    return place / LOCK if is_pinned(place) else place.parent / f".{place.name}{LOCK}"


def _acquire(path: Path, target: Path) -> int | None:
    """An open lock; None if this process has it already, or none can be had."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            taken = portable.take_lock(handle)
            holder = {} if taken else _read(handle)
            if taken and _is_at(path, handle):  # else its last holder has just removed it
                _sign(handle)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        if taken is None:
            path.unlink(missing_ok=True)
            return None
        if _is_this_process(holder):
            return None
        if not taken:
            raise OutputError(
                f"{target} is being written by {_name(holder)}; wait until it is done, or give "
                "another --output"
            )


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _is_this_process(holder: dict[str, object]) -> bool:
    return (holder.get("program"), holder.get("pid")) == (_PROGRAM, os.getpid())


def _sign(handle: int) -> None:
    said = {
        "program": _PROGRAM,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": Path(sys.argv[0]).name if sys.argv else "",
    }
    portable.replace_content(handle, json.dumps(said).encode())


def _read(handle: int) -> dict[str, object]:
    try:
        said = parse_json(portable.read_start(handle, 4096))
    except ValueError:  # it is being signed
        return {}
    return said if isinstance(said, dict) else {}


def _name(holder: dict[str, object]) -> str:
    if "pid" not in holder:
        return "another process"
    command = f" ({holder['command']})" if holder.get("command") else ""
    return f"process {holder['pid']}{command} on {holder.get('host')} since {holder.get('since')}"
