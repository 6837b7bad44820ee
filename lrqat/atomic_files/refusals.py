"""What cannot be written, in words: something is there already, the disk is full, and the like."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lrqat.errors import OutputError

LOCK = ".lock"  # of a folder that cannot have one beside it; see `lrqat.atomic_files.locks`
_REASONS: dict[int | None, str] = {
    errno.ENOSPC: "the disk is full; free some space and run the command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the command again",
    errno.EFBIG: "the file would be larger than allowed here (ulimit -f)",
    errno.EIO: "the disk reports an error (EIO); check it, or choose another --output",
    errno.EACCES: "writing is not permitted there; choose another --output",
    errno.EROFS: "the file system is read-only; choose another --output",
    errno.ENOTDIR: "a part of its path is a file; choose another --output",
    errno.EEXIST: "a part of its path is a file; choose another --output",
    errno.EISDIR: "it is a folder; name a file",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter --output",
}


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise OutputError if `path` exists (and, a folder, is not empty) unless `overwrite`."""
    if is_occupied(path) and not overwrite:
        raise OutputError(f"{path} exists already; give another --output, or add --overwrite")


def is_occupied(path: Path) -> bool:
    """Whether `path` is a file, or a folder with anything but a lock in it."""
    if not path.is_dir():
        return path.exists()
    return any(inside.name != LOCK for inside in path.iterdir())


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder and the like into an OutputError about `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = _REASONS.get(_error_number(error))
        if reason is None:
            raise
        raise OutputError(f"cannot write {path}: {reason}") from None


def _error_number(error: OSError | SafetensorError) -> int | None:
    """The errno behind an error, which safetensors and numpy say in words only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if re.search(r"\d+ requested and \d+ written", str(error)):  # numpy's tofile
        return errno.ENOSPC
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None
