"""Folders that are replaced whole, so that every reader finds the old one or the new one.

The new folder is made beside its target, `.NAME.xxxxxxxx.staging`. What happens then:

    1. it becomes `.NAME.xxxxxxxx.replaced`
    2. that name and the target are exchanged in one step; `.replaced` is the old folder now
    3. what is not the artefact's own goes over from `.replaced` to the target
    4. `.replaced` is deleted

A process that is killed after 1 leaves either of them under that name. The new one has nothing to
carry over, so 3 and 4, done by the next that writes there, are right for both.

Where names cannot be exchanged (the target is a mounted volume, or somebody's working directory),
the new folder moves into the target, `TARGET/.publishing`, with a list of the names to remove. From
that step on it will be published: names are removed, files moved, the marker first and last, by
this process or by whoever comes next. In between, a reader finds no marker, and asks `recover`.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lrqat.atomic_files.exchange import exchange
from lrqat.atomic_files.files import (
    STAGING,
    delete,
    fsync,
    leftovers,
    make_durable,
    staging_beside,
    write_json,
)
from lrqat.atomic_files.locks import is_pinned, locked
from lrqat.atomic_files.refusals import LOCK, explain_os_errors, is_occupied, refuse_existing
from lrqat.errors import OutputError
from lrqat.foreign_files import ForeignFileError, parse_json

_REPLACED = "replaced"
_INSIDE, _PUBLISHING, _LIST = ".staging-", ".publishing", ".remove.json"
# Names in an artefact's folder that are not the artefact's own.
Kept = Callable[[Path], Iterable[str]]


def keep_nothing(folder: Path) -> Iterable[str]:
    """Of a folder that is the artefact's alone."""
    return ()


@contextmanager
def replaced_folder(target: Path, overwrite: bool, marker: str) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends without an error.

    If anything fails the target is as it was, and the temporary folder is removed.

    Args:
        target: the folder to be.
        overwrite: whether one that is there may be replaced.
        marker: name of a file that such a folder holds; one without it is somebody else's, and is
            never replaced.

    Raises:
        OutputError: `target` is occupied and `overwrite` is false or it has no `marker`, another
            process is writing it, or the disk is full or not writable.
    """
    refuse_occupied(target, overwrite, marker)
    with _published(target, marker, keep_nothing) as staging:
        yield staging
        refuse_existing(target, overwrite)


@contextmanager
def staged_folder(target: Path, last: str, kept: Kept = keep_nothing) -> Iterator[Path]:
    """As `replaced_folder`, of a folder in which there are things that are not replaced.

    Args:
        target: the folder to be; one that is there is replaced.
        last: name of the file that makes such a folder valid.
        kept: names in an earlier folder that the new one takes over, unless it has them itself.
            What the artefact writes must not be among them.

    Raises:
        OutputError: another process is writing it, or the disk is full or not writable.
    """
    with _published(target, last, kept) as staging:
        yield staging


def recover(target: Path, marker: str, kept: Kept = keep_nothing) -> None:
    """Finish or remove what a killed process left of a folder, if nobody is writing it.

    For readers that find no valid folder; writers do it by themselves. Where nobody can have
    written, nothing is made, not even a lock.
    """
    if not Path(os.path.realpath(target)).parent.is_dir():
        return
    with suppress(OSError, OutputError), locked(target) as alone:
        if alone:
            sweep(target, marker, kept)


def is_unsettled(target: Path) -> bool:
    """Whether what is to stay of a folder that was replaced may still lie beside it.

    Of a killed process or of one that is at it: only who has the lock knows (`recover`).
    """
    place = Path(os.path.realpath(target))
    try:
        return bool(leftovers(place, _REPLACED))
    except OSError:  # no parent, or it may not be read
        return False


def sweep_leftovers(folder: Path, marker: str) -> None:
    """Remove what killed writers of folders with a `marker` left in `folder`."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    of = re.compile(rf"\.(.+)(\.[a-z0-9_]{{8}}\.({STAGING}|{_REPLACED})|{re.escape(LOCK)})")
    for name in sorted({found[1] for each in names if (found := of.fullmatch(each))}):
        recover(folder / name, marker)


def sweep(target: Path, marker: str, kept: Kept) -> None:
    """Finish or remove what was left of `target`, whose lock this process has just taken."""
    place = Path(os.path.realpath(target))
    for leftover in leftovers(place, _REPLACED):
        _carry_over(leftover, place, kept)
    abandoned = leftovers(place, STAGING)
    if place.is_dir():
        _finish_in_place(place, marker)
        abandoned += place.glob(_INSIDE + "*")
    for leftover in abandoned:
        delete(leftover)


@contextmanager
def _published(target: Path, marker: str, kept: Kept) -> Iterator[Path]:
    with explain_os_errors(target), locked(target) as alone:
        if alone:
            sweep(target, marker, kept)
        place = Path(os.path.realpath(target))
        staging = (
            Path(tempfile.mkdtemp(prefix=_INSIDE, dir=place))
            if is_pinned(place)
            else staging_beside(place)
        )
        try:
            yield staging
            make_durable(staging)
            _publish(staging, place, marker, kept)
        finally:
            delete(staging)


def _publish(staging: Path, place: Path, marker: str, kept: Kept) -> None:
    if is_pinned(place) or _is_entered(place):
        _publish_in_place(staging, place, marker, kept)
    elif not place.exists() or not os.listdir(place):
        os.rename(staging, place)
        fsync(place.parent)
    else:
        aside = staging.with_suffix(f".{_REPLACED}")
        os.rename(staging, aside)
        swapped = False
        try:
            swapped = exchange(aside, place)
        finally:
            if not swapped:
                os.rename(aside, staging)
        if swapped:
            fsync(place.parent)
            _carry_over(aside, place, kept)
        else:
            _publish_in_place(staging, place, marker, kept)


def _carry_over(aside: Path, place: Path, kept: Kept) -> None:
    """Take out of a folder that was replaced what is to stay, and delete the rest."""
    names = [name for name in kept(aside) if not os.path.lexists(place / name)]
    if names:
        place.mkdir(exist_ok=True)
    for name in names:
        os.rename(aside / name, place / name)
    if names:
        fsync(place)
    delete(aside)


def _is_entered(place: Path) -> bool:
    """Whether this process works in the folder: under another name it would be lost to it."""
    try:
        here = Path.cwd().resolve()
    except OSError:
        return False
    return place in (here, *here.parents)


def _publish_in_place(staging: Path, place: Path, marker: str, kept: Kept) -> None:
    coming, here = set(os.listdir(staging)), set(os.listdir(place))
    own = here - (set(kept(place)) - coming)
    own = {n for n in own if n not in (LOCK, _PUBLISHING) and not n.startswith(_INSIDE)}
    write_json(staging / _LIST, sorted(own))
    fsync(staging / _LIST)
    fsync(staging)
    os.rename(staging, place / _PUBLISHING)
    fsync(place)
    _finish_in_place(place, marker)


def _finish_in_place(place: Path, marker: str) -> None:
    coming = place / _PUBLISHING
    if not coming.is_dir() or coming.is_symlink():
        return
    if (coming / _LIST).is_file():
        for name in (marker, *_names_in(coming / _LIST)):
            _remove(place / name)
        fsync(place)
        (coming / _LIST).unlink()
    for name in sorted(os.listdir(coming), key=lambda name: name == marker):
        os.replace(coming / name, place / name)
    fsync(place)
    coming.rmdir()


def _names_in(path: Path) -> list[str]:
    """The list of names to remove; nothing that would lead out of the folder."""
    try:
        names = parse_json(path.read_bytes())  # an error of the disk is none of the list
    except (ValueError, ForeignFileError):
        return []
    listed = names if isinstance(names, list) else []
    return [n for n in listed if isinstance(n, str) and n not in ("", "..") and Path(n).name == n]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_occupied(target: Path, overwrite: bool, marker: str) -> None:
    """Refuse a folder that may not be replaced, after what a killed process left of it is settled.

    So what is refused is whole, and the refusal leaves nothing beside it.

    Raises:
        OutputError: as for `replaced_folder`.
    """
    if is_occupied(target) and _is_ours(target, marker):
        recover(target, marker)
    refuse_existing(target, overwrite)
    if is_occupied(target) and not (target / marker).is_file():
        raise OutputError(
            f"{target} holds no {marker}, so it is not an earlier export and is not replaced; name "
            "another --output"
        )


def _is_ours(target: Path, marker: str) -> bool:
    """Whether a folder is such an artefact, on its way to be one, or nothing but litter of one.

    What lies beside anybody else's folder is not settled by these rules: it may have to be kept.
    """
    if any((place / marker).is_file() for place in (target, target / _PUBLISHING)):
        return True
    names = os.listdir(target) if target.is_dir() else []
    return bool(names) and all(name == LOCK or name.startswith(_INSIDE) for name in names)
