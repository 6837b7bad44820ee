"""Files that appear whole or not at all, in folders that are somebody's."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrqat.atomic_files.locks import locked
from lrqat.atomic_files.refusals import explain_os_errors, refuse_existing

STAGING = "staging"  # ends the name of a folder that becomes its target
_UNFINISHED = r"\.{name}\.[a-z0-9_]{{8}}\.{ending}"  # as tempfile makes it


def staging_beside(target: Path) -> Path:
    """A new temporary folder beside `target`: hidden, on the same disk."""
    return Path(tempfile.mkdtemp(f".{STAGING}", f".{target.name}.", target.parent))


def leftovers(target: Path, ending: str) -> list[Path]:
    """Folders beside `target` that a writer of it made and did not come to remove."""
    pattern = re.compile(_UNFINISHED.format(name=re.escape(target.name), ending=ending))
    return [
        path
        for path in sorted(target.parent.iterdir())
        if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]


@contextmanager
def replaced_file(target: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary file that becomes `target` when the block ends without an error.

    See `replaced_files`.
    """
    with replaced_files([target], overwrite) as (staged,):
        yield staged


@contextmanager
def replaced_files(targets: Sequence[Path], overwrite: bool) -> Iterator[list[Path]]:
    """Temporary files that become `targets`, in one folder, when the block ends without an error.

    They lie in a temporary sibling folder under their own names. The first target gets its name
    last. Where there are several, an earlier first one is removed before the others are replaced,
    so that no reader who begins with it can find files of two generations. If anything fails before
    that, the targets are as they were; the temporary folder is removed, one that a killed process
    left by the next call.

    Raises:
        OutputError: a target exists and `overwrite` is false, another process is writing the first,
            the disk is full, or the folder is not writable.
    """
    first, *others = targets
    for target in targets:
        refuse_existing(target, overwrite)
    with explain_os_errors(first), locked(first) as alone:
        for leftover in leftovers(first, STAGING) if alone else []:
            shutil.rmtree(leftover, ignore_errors=True)
        staging = staging_beside(first)
        staged = [staging / target.name for target in targets]
        try:
            yield staged
            make_durable(staging)
            for target in targets:
                refuse_existing(target, overwrite)
            if others:
                first.unlink(missing_ok=True)
            for path, target in zip(reversed(staged), reversed(targets), strict=True):
                os.replace(path, target)
            fsync(first.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def make_durable(folder: Path) -> None:
    """Give everything in `folder` the modes of new files, and see that it is on the disk.

    Some writers leave files private, and temporary folders are.
    """
    hidden = umask()
    for place, _, names in os.walk(folder):
        for path in (*(Path(place) / name for name in names), Path(place)):
            if not path.is_symlink():
                os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~hidden)
                fsync(path)


def fsync(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
