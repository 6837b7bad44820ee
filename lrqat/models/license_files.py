"""Licences, notices and policies of use of a base model, which go with what is made of it.

They may be anybody's files. What is no plain text file of its own folder, or larger than such texts
are, is left where it is: a link to a file of this machine would be published with the checkpoint.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from transformers.utils.hub import cached_file

from lrqat.checkpoint.roles import is_license_file
from lrqat.foreign_files import ForeignFileError, read_bytes
from lrqat.models.from_gguf.folder import is_gguf

_MOST_BYTES, _MOST_FILES = 1 << 18, 16  # the longest licence known, GPL-3, has 35 KB
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
# What repositories of the hub call them; a folder is looked through.
_ON_THE_HUB = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md")


def license_files(name: str) -> dict[str, bytes]:
    """The texts by their file names, in order; empty if there are none.

    Args:
        name: as `--model` takes it. What lies beside a GGUF file may be of another model.
    """
    if is_gguf(name):
        return {}
    found = {}
    for path in _inside(Path(name)) if Path(name).is_dir() else _on_the_hub(name):
        try:
            data = read_bytes(path, _MOST_BYTES)
            data.decode("utf-8")
        except (ForeignFileError, UnicodeDecodeError):
            continue
        found[path.name] = data
    return dict(list(found.items())[:_MOST_FILES])


def _inside(folder: Path) -> Iterator[Path]:
    """Files of a folder; a snapshot of huggingface_hub's has links into the blobs beside it."""
    homes = {folder.resolve()}
    if folder.resolve().parent.name == "snapshots":
        homes.add(folder.resolve().parent.parent / "blobs")
    for path in sorted(folder.iterdir()):
        plain = is_license_file(path.name) and _NAME.fullmatch(path.name)
        if plain and path.is_file() and path.resolve().parent in homes:
            yield path


def _on_the_hub(name: str) -> Iterator[Path]:
    for file in _ON_THE_HUB:
        # All three: a model without is as good as one with.
        path = cached_file(
            name,
            file,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if path is not None:
            yield Path(path)
