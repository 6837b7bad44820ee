"""A file that appears complete or not at all.

It is written under a temporary name beside its target, made durable, and renamed. Whatever fails,
the target is as it was and the temporary file is removed. A process that is killed outright cannot
remove its own, so the next one does: a temporary file is locked while its writer lives, and those
that nobody locks are stale.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrqat.publish import explain_os_errors, fsync, refuse_existing, umask

try:
    import fcntl
except ImportError:  # Windows has no flock: stale files stay there until somebody deletes them
    fcntl = None  # type: ignore[assignment]

_SUFFIX = ".partial"


@contextmanager
def staged_file(target: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary path that becomes `target` when the block ends without an error.

    Raises:
        OutputError: `target` exists and `overwrite` is false, the disk is full, or the folder is
            not writable.
    """
    refuse_existing(target, overwrite)
    with explain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        handle, name = tempfile.mkstemp(_SUFFIX, f".{target.name}.", target.parent)
        staged = Path(name)
        try:
            _lock(handle)
            yield staged
            os.chmod(staged, 0o666 & ~umask())  # mkstemp leaves it private
            fsync(staged)
            refuse_existing(target, overwrite)
            os.replace(staged, target)
            fsync(target.parent)
        finally:
            os.close(handle)
            staged.unlink(missing_ok=True)


def _remove_stale(target: Path) -> None:
    if fcntl is None:
        return
    prefix = f".{target.name}."
    for entry in sorted(target.parent.iterdir()):
        if not (entry.name.startswith(prefix) and entry.name.endswith(_SUFFIX)):
            continue
        with contextlib.suppress(OSError), entry.open("rb") as stream:
            _lock(stream.fileno())  # raises where another export is writing it
            entry.unlink()


def _lock(handle: int) -> None:
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
