"""Putting finished files in place: all of them, or none, and never over something without leave."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lrqat.errors import OutputError

_PARTIAL, _ASIDE = "partial", "old"
_REASONS: dict[int | None, str] = {
    errno.ENOSPC: "the disk is full; free some space and run the command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the command again",
    errno.EFBIG: "the file would be larger than allowed here (ulimit -f)",
    errno.EACCES: "writing is not permitted there; choose another --output",
    errno.EROFS: "the file system is read-only; choose another --output",
    errno.ENOTDIR: "a part of its path is a file; choose another --output",
    errno.EEXIST: "a part of its path is a file; choose another --output",
    errno.EISDIR: "it is a folder; name a file",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter --output",
}


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise OutputError if `path` exists (and, a folder, is not empty) unless `overwrite`."""
    occupied = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if occupied and not overwrite:
        raise OutputError(f"{path} exists already; give another --output, or add --overwrite")


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


@contextmanager
def staged_folder(target: Path, last: str) -> Iterator[Path]:
    """A temporary folder whose files move into `target` when the block ends without an error.

    Files are fsynced and moved one by one, `last` (the file that makes the folder valid) at the
    end. If anything fails, the temporary folder is removed and `target` is as it was.

    Raises:
        OutputError: the disk is full or not writable.
    """
    with explain_os_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=target))
        try:
            yield staging
            names = sorted(path.name for path in staging.iterdir())
            for name in names:
                os.chmod(staging / name, 0o666 & ~umask())  # some writers leave files private
                fsync(staging / name)
            for name in sorted(names, key=lambda name: name == last):
                os.replace(staging / name, target / name)
            fsync(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def fsync(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replaced_file(target: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary sibling file that becomes `target` when the block ends without an error.

    If anything fails, `target` is as it was and the temporary file is removed; one that a killed
    process left is removed by the next call.

    Raises:
        OutputError: `target` exists and `overwrite` is false, the disk is full, or the folder is
            not writable.
    """
    refuse_existing(target, overwrite)
    with explain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        handle, name = tempfile.mkstemp(*_temporary_name(target))
        os.close(handle)
        staged = Path(name)
        try:
            yield staged
            os.chmod(staged, 0o666 & ~umask())  # mkstemp leaves it private
            fsync(staged)
            refuse_existing(target, overwrite)
            os.replace(staged, target)
            fsync(target.parent)
        finally:
            staged.unlink(missing_ok=True)


@contextmanager
def replaced_files(targets: Sequence[Path], overwrite: bool) -> Iterator[list[Path]]:
    """Temporary files that become `targets`, in one folder, when the block ends without an error.

    They lie in a temporary sibling folder under their own names. The first target gets its name
    last. Where there are several, an earlier first one is removed before the others are replaced,
    so that no reader who begins with it can find files of two generations. If anything fails before
    that, the targets are as they were.

    Raises:
        OutputError: a target exists and `overwrite` is false, the disk is full, or the folder is
            not writable.
    """
    first, *others = targets
    for target in targets:
        refuse_existing(target, overwrite)
    with explain_os_errors(first):
        first.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(first)
        staging = Path(tempfile.mkdtemp(*_temporary_name(first)))
        staged = [staging / target.name for target in targets]
        try:
            yield staged
            for path in staged:
                fsync(path)
            for target in targets:
                refuse_existing(target, overwrite)
            if others:
                first.unlink(missing_ok=True)
            for path, target in zip(reversed(staged), reversed(targets), strict=True):
                os.replace(path, target)
            fsync(first.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def replaced_folder(target: Path, overwrite: bool, marker: str) -> Iterator[Path]:
    """A temporary sibling folder that becomes `target` when the block ends without an error.

    A folder that was there before is moved aside, and deleted only once the new one is in place; if
    anything fails it is as it was, and the temporary folder is removed.

    Args:
        target: the folder to be.
        overwrite: whether one that is there may be replaced.
        marker: name of a file that such a folder holds; one without it is somebody else's, and is
            never replaced.

    Raises:
        OutputError: `target` is occupied and `overwrite` is false or it has no `marker`, or the
            disk is full or not writable.
    """
    refuse_existing(target, overwrite)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        _refuse_foreign(target, marker)
    with explain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        staging = Path(tempfile.mkdtemp(*_temporary_name(target)))
        aside = staging.with_suffix(f".{_ASIDE}")
        try:
            yield staging
            for path in sorted(staging.iterdir()):
                os.chmod(path, 0o666 & ~umask())
                fsync(path)
            os.chmod(staging, 0o777 & ~umask())
            fsync(staging)
            refuse_existing(target, overwrite)
            if target.exists():
                os.replace(target, aside)
            os.replace(staging, target)
            fsync(target.parent)
        finally:
            if aside.exists() and not target.exists():
                os.replace(aside, target)
            for leftover in (staging, aside):
                shutil.rmtree(leftover, ignore_errors=True)


def _refuse_foreign(target: Path, marker: str) -> None:
    if not (target / marker).is_file():
        raise OutputError(
            f"{target} holds no {marker}, so it is not an earlier export and is not replaced; name "
            "another --output"
        )


def _remove_abandoned(target: Path) -> None:
    """Delete what a killed process left beside `target`; restore what it had moved aside."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.[^.]+\.({_PARTIAL}|{_ASIDE})")
    for leftover in sorted(target.parent.iterdir()):
        found = ours.fullmatch(leftover.name)
        if found is None or _is_alive(int(found[1])):
            continue
        if found[2] == _ASIDE and not target.exists():
            os.replace(leftover, target)
        elif leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _temporary_name(target: Path) -> tuple[str, str, str]:
    """Suffix, prefix and folder of a temporary sibling: hidden, with the process that makes it."""
    return f".{_PARTIAL}", f".{target.name}.{os.getpid()}.", str(target.parent)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it exists and belongs to someone else
        return True
    return True


def umask() -> int:
    """The process's file mode mask; reading it means setting it twice."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as UTF-8 in the order given, the same bytes on every machine.

    Raises:
        ValueError: NaN or infinity.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
