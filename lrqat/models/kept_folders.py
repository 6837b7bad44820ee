"""Model folders that are made of something else once, and kept in the user's cache.

    ~/.cache/lrqat/KIND/NAME-HASH/      (under XDG_CACHE_HOME where that is set)

Those used last stay, up to a size in all. When one was used is the time of its config.json. What
was used within a day may be in use still, and stays whatever its size.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from lrqat import __version__
from lrqat.atomic_files import replaced_folder
from lrqat.errors import ModelError

MOST_BYTES = 32 << 30
_IN_USE_SECONDS = 86_400.0
_GOING = ".going-"
_CONFIG = "config.json"
_LONGEST_SECONDS = 3600.0  # to make one: some hundred megabytes a second


def kept_folder(kind: str, name: str, source: str, make: Callable[[Path], None]) -> Path:
    """The folder that `make` makes of `source`, made if it is not there yet.

    Args:
        kind: of source.
        name: for people, a part of a file name.
        source: tells this one, as it is now, from every other.
        make: fills a folder; config.json is what it writes last.

    Raises:
        ModelError: another process of this run should have made it, and did not.
        OutputError: it cannot be written.
        Exception: what `make` raises; nothing is left then.
    """
    said = hashlib.sha256(f"{__version__} {source}".encode()).hexdigest()[:16]
    folder = cache(kind) / f"{name}-{said}"
    if _is_made(folder, name):
        note_use(folder / _CONFIG)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replaced_folder(folder, True, _CONFIG) as staging:
        make(staging)
    remove_oldest(folder.parent, _CONFIG)
    return folder


def file_identity(path: Path) -> str:
    """What tells a file, as it is now, from every other."""
    found = path.stat()
    return f"{path} {found.st_size} {found.st_mtime_ns}"


def cache(kind: str) -> Path:
    """Where the folders of a kind are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lrqat" / kind


def _is_made(folder: Path, name: str) -> bool:
    """Whether the folder is there; of several processes of a run, the first one makes it."""
    end = time.monotonic() + _LONGEST_SECONDS
    while not (folder / _CONFIG).is_file():
        if os.environ.get("LOCAL_RANK", "0") == "0":
            return False
        if time.monotonic() > end:
            raise ModelError(f"{name} has not been read by the first process; start it alone first")
        time.sleep(0.2)
    return True


def note_use(marker: Path) -> None:
    """Say that the folder of `marker`, its config.json, is used now."""
    with suppress(OSError):  # it may be somebody else's, who only lets us read
        os.utime(marker)


def remove_oldest(cache: Path, marker: str, most_bytes: int | None = None) -> list[Path]:
    """Remove the folders that were not used for longest, until the others fit.

    Args:
        cache: the folder that they are in.
        marker: name of the file that a complete one holds; anything else is left alone.
        most_bytes: of all together; None: `MOST_BYTES`.

    Returns:
        What was removed.
    """
    left = MOST_BYTES if most_bytes is None else most_bytes
    removed = []
    for going in cache.glob(f"{_GOING}*"):  # of a process that was killed here
        shutil.rmtree(going, ignore_errors=True)
    for used, folder in sorted(_complete(cache, marker), reverse=True):
        left -= sum(file.stat().st_size for file in folder.iterdir())
        if left < 0 and time.time() - used > _IN_USE_SECONDS:
            with suppress(OSError):
                _remove(folder)
                removed.append(folder)
    return removed


def _complete(cache: Path, marker: str) -> Iterator[tuple[float, Path]]:
    for folder in cache.iterdir():
        if not folder.name.startswith(".") and (folder / marker).is_file():
            yield (folder / marker).stat().st_mtime, folder


def _remove(folder: Path) -> None:
    """In one step for whoever looks: half a model is never found under its name."""
    aside = Path(tempfile.mkdtemp(prefix=_GOING, dir=folder.parent))
    folder.rename(aside / folder.name)
    shutil.rmtree(aside)
