"""What was measured of a checkpoint and of files made from it: measured.json in its folder.

    {"parity": {DIGEST: {...}}, "base": {DIGEST: {...}}}

`lrqat parity` and `lrqat evaluate --base` write it, and the model card repeats it. A measurement
is known by the bytes that were measured: of a file that was written anew, nothing is known. The
checkpoint does not list it, and lives without it.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrqat.atomic_files import replaced_file, write_json
from lrqat.checkpoint.manifest import FILE_NAME, sha256_of
from lrqat.foreign_files import ForeignFileError, read_json

MEASURED = "measured.json"
PARITY, BASE = "parity", "base"  # with its checkpoint; with the model that it was made from
_MOST_KEPT = 100  # of each


def digest_of(files: Sequence[Path]) -> str:
    """One hash of the bytes of a model's files, whatever they are called."""
    return hashlib.sha256("\n".join(map(sha256_of, files)).encode()).hexdigest()


def home_of(path: Path) -> Path | None:
    """The checkpoint's folder that a file lies in, or that it is; None outside of any."""
    return next((each for each in (path, path.parent) if (each / FILE_NAME).is_file()), None)


def record(folder: Path, what: str, digest: str, found: dict[str, Any]) -> None:
    """Keep a measurement in the place of an earlier one of the same bytes.

    Args:
        folder: of the checkpoint.
        what: `PARITY` or `BASE`.
        digest: of what was measured.
        found: plain values.

    Raises:
        OutputError: the folder cannot be written.
    """
    known = _read(folder)
    kept = {key: value for key, value in _of(known, what).items() if key != digest}
    newest = dict(list(kept.items())[-_MOST_KEPT + 1 :]) | {digest: found}
    with replaced_file(folder / MEASURED, overwrite=True) as path:
        write_json(path, known | {what: newest})


def recorded(folder: Path, what: str, digest: str) -> dict[str, Any] | None:
    """What was measured of those bytes; None if nothing was."""
    found = _of(_read(folder), what).get(digest)
    return found if isinstance(found, dict) else None


def _read(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / MEASURED)
    except ForeignFileError:  # there is none, or somebody has spoilt it
        return {}


def _of(known: dict[str, Any], what: str) -> dict[str, Any]:
    found = known.get(what)
    return found if isinstance(found, dict) else {}
