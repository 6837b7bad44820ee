"""Which dequantised models stay in the cache: those used last, up to a size in all.

When one was used is the time of its config.json. What was used within a day may be in use still,
and stays whatever its size.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MOST_BYTES = 32 << 30
_IN_USE_SECONDS = 86_400.0
_GOING = ".going-"


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
