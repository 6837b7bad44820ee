"""Files that appear whole or not at all, in folders that are somebody's.

New files are made in a folder beside their place, `.NAME.xxxxxxxx.staging`, NAME being the first
file's. One file then takes its name in one step. Several cannot, so

    1. the folder becomes `.NAME.xxxxxxxx.publishing`; from that step on its files will be published
    2. an earlier first file is removed
    3. the others take their names, in the place of earlier ones
    4. the first takes its name, and the empty folder goes

2 to 4 are done by this process or, if it is killed, by whoever comes next: another writer, or a
reader who misses the first file (`is_present`). Without the first file the others are nothing to
any reader, so nobody can take files of two generations for one model.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lrqat import portable
from lrqat.atomic_files.locks import lock_of, locked
from lrqat.atomic_files.refusals import explain_os_errors, refuse_existing
from lrqat.errors import OutputError

STAGING = "staging"  # ends the name of a folder that becomes its target
_PUBLISHING = "publishing"  # and of one whose files are on their way to their names
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

    They lie in a temporary sibling folder under their own names. If the block fails, the targets
    are as they were and the temporary folder is removed. If the process ends while several files
    take their names, the next that writes or reads them finishes that; see above.

    Raises:
        OutputError: a target exists and `overwrite` is false, another process is writing the first,
            the disk is full, or the folder is not writable.
    """
    first = targets[0]
    refuse_present(targets, overwrite)
    with explain_os_errors(first), locked(first) as alone:
        if alone:
            _sweep_files(first)
        staging = staging_beside(first)
        staged = [staging / target.name for target in targets]
        try:
            yield staged
            make_durable(staging)
            for target in targets:
                refuse_existing(target, overwrite)
            _publish_files(staging, staged, first)
        finally:
            delete(staging)


def refuse_present(targets: Sequence[Path], overwrite: bool) -> None:
    """`refuse_existing` for files, after what a killed process left of them is settled.

    So what is refused is whole, and the refusal leaves nothing beside it.
    """
    recover_files(targets[0])
    for target in targets:
        refuse_existing(target, overwrite)


def is_present(first: Path) -> bool:
    """Whether a file is there, or was about to be when its writer was killed, and is now.

    For readers; of several files, by the first.
    """
    if not first.is_file():
        recover_files(first)
    return first.is_file()


def recover_files(first: Path) -> None:
    """Finish or remove what a killed process left of files, the first of which is `first`.

    Where nothing was left, or somebody is writing, nothing is done.
    """
    with suppress(OSError, ValueError, OutputError):
        left = lock_of(first).exists() or leftovers(first, STAGING) or leftovers(first, _PUBLISHING)
        if left:
            with locked(first) as alone:
                if alone:
                    _sweep_files(first)


def _sweep_files(first: Path) -> None:
    """`recover_files`, by whoever has just taken the lock."""
    for coming in leftovers(first, _PUBLISHING):
        _finish_files(coming, first)
    for abandoned in leftovers(first, STAGING):
        delete(abandoned)


def _publish_files(staging: Path, staged: Sequence[Path], first: Path) -> None:
    if len(staged) == 1:
        os.replace(staged[0], first)
        fsync(first.parent)
        return
    for path in staging.iterdir():  # what whoever comes next finds in there is published
        if path not in staged:
            path.unlink()
    coming = staging.with_suffix(f".{_PUBLISHING}")
    os.rename(staging, coming)
    fsync(first.parent)
    _finish_files(coming, first)


def _finish_files(coming: Path, first: Path) -> None:
    """Give the files in `coming` their names; also if some of them have theirs already."""
    names = sorted(os.listdir(coming))
    if first.name in names:
        first.unlink(missing_ok=True)
        fsync(first.parent)
        for name in names:
            if name != first.name:
                os.replace(coming / name, first.parent / name)
        fsync(first.parent)  # in this order on the disk, too
        os.replace(coming / first.name, first)
        fsync(first.parent)
    coming.rmdir()


def delete(folder: Path) -> None:
    """Delete a folder of ours with all that is in it, as far as that can be done.

    A folder in there that may not be entered is opened first: it would be litter that stays.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if folder.is_dir():
        for place, names, _ in os.walk(folder):
            for path in (Path(place, name) for name in names):
                if not path.is_symlink():
                    with suppress(OSError):
                        path.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)


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
    portable.make_durable(path)


def umask() -> int:
    """The process's file mode mask; reading it means setting it twice."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Any, *, compact: bool = False) -> None:
    """Write `value` to `path` as UTF-8 in the order given, the same bytes on every machine.

    With `compact` all on one line, which is for long lists of numbers.

    Raises:
        ValueError: NaN or infinity.
    """
    style: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 2}
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, **style)
    path.write_text(text + "\n", encoding="utf-8")
