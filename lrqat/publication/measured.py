"""What was measured of a file, kept in its checkpoint's folder and found again."""

from pathlib import Path
from typing import Any

from exporters.format import CHECKPOINT, recognise
from exporters.inspection import inspect
from lrqat.cards.measurements import BASE, PARITY, digest_of, home_of, record, recorded
from lrqat.checkpoint.manifest import FILE_NAME


def model_paths(path: Path) -> list[Path]:
    """The files whose bytes are a model's: graph and weights; of a checkpoint, its lrqat.json.

    Raises:
        UserError: no file or folder of ours, or a damaged one.
    """
    if recognise(path) == CHECKPOINT:
        return [path / FILE_NAME]  # which has the hashes of all others
    folder = path if path.is_dir() else path.parent
    return [folder / name for name in inspect(path).files]


def keep(path: Path, what: str, found: dict[str, Any], home: Path | None = None) -> Path | None:
    """Keep what was measured of a file.

    Args:
        path: the file, the folder, or a checkpoint.
        what: `PARITY` or `BASE`.
        found: plain values.
        home: its checkpoint's folder; None: the one that it lies in, if it does.

    Returns:
        The folder that it is kept in; None where there is none.

    Raises:
        UserError: the file cannot be read, or the folder cannot be written.
    """
    folder = home or home_of(path)
    if folder is not None:
        record(folder, what, digest_of(model_paths(path)), found)
    return folder


def known(path: Path, home: Path) -> dict[str, dict[str, Any]]:
    """What was measured of a file as it is now, by what it was compared with."""
    digest = digest_of(model_paths(path))
    found = {what: recorded(home, what, digest) for what in (PARITY, BASE)}
    return {what: values for what, values in found.items() if values is not None}
