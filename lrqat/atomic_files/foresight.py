"""Whether something can be written, found before it is made: nothing is written to find out."""

import errno
import os
import shutil
from pathlib import Path

from lrqat.atomic_files.refusals import explain_os_errors
from lrqat.errors import OutputError


def refuse_unwritable(target: str | Path, *, folder: bool, needed: int = 0) -> None:
    """Refuse a place where writing will fail, as far as that can be seen.

    A later failure is still possible: others fill disks and change permissions.

    Args:
        target: the file or folder to be; folders above it are made when it is written.
        folder: whether it is to be a folder.
        needed: bytes that will be written, as far as is known.

    Raises:
        OutputError: a part of the path is a file, the permission is missing, the file system is
            read-only, or the disk has less than `needed` bytes free.
    """
    place = Path(os.path.realpath(target))
    existing = next(path for path in (place, *place.parents) if os.path.lexists(path))
    with explain_os_errors(Path(target)):
        if existing == place and place.is_dir() and not folder:
            raise IsADirectoryError(errno.EISDIR, "is a folder")
        if existing == place and not place.is_dir() and not folder:
            existing = place.parent  # a file is replaced by another, which is made beside it
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "is a file")
        if hasattr(os, "statvfs") and os.statvfs(existing).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, "read-only")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "not permitted")
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OutputError(
            f"cannot write {target}: it takes about {_mib(needed)}, and the disk has "
            f"{_mib(free)} free; free some space, or choose another --output"
        )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
