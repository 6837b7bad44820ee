"""What is not published: paths of somebody's machine, unknown files, a model without a licence."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lrqat.cards.origin import Origin, is_license, is_repository
from lrqat.checkpoint.roles import CARD, Role, role_of
from lrqat.errors import OutputError, UserError
from lrqat.foreign_files import read_json

# Two folders deep, or on a drive: "/" and "/s" are texts that a tokenizer may have.
_ABSOLUTE = re.compile(r"(/[^/\n{}<>|]+){2,}/?|[A-Za-z]:[\\/][^\n]+|~[/\\][^\n]+")
_SETTINGS = (
    "lrqat.json", "config.json", "generation_config.json", "tokenizer_config.json",
    "genai_config.json",
)  # fmt: skip
_OF_AN_EXPORT = ("config.json", "genai_config.json", CARD)


def refuse_repository(name: str) -> None:
    """Raise UserError for what is no owner/name."""
    if not is_repository(name):
        raise UserError(f"--repo {name!r} is no repository of the hub; write owner/name")


def choose_license(origin: Origin, asked: str | None) -> str:
    """The licence that the card names.

    Args:
        origin: what is known of the source.
        asked: what the user says in its place, or None.

    Raises:
        UserError: nobody says one, or it is no identifier.
    """
    if asked is not None and not is_license(asked):
        raise UserError(
            f"--license {asked!r} is no identifier of the hub's; write apache-2.0, mit, llama3.2, "
            "gemma, other ..."
        )
    found = asked or origin.license
    if found is None:
        raise UserError(
            "the licence of this model is not known: its source has no card that names one. What "
            "is derived from a model keeps its licence; look it up, and give it with --license"
        )
    return found


def refuse_local_paths(files: Iterable[tuple[str, Path]]) -> None:
    """Raise OutputError for settings in which a path of this machine stands.

    Args:
        files: (name in the repository, file).
    """
    for name, path in files:
        if Path(name).name in _SETTINGS:
            for key, text in _texts(read_json(path, 1 << 21)):
                if _ABSOLUTE.fullmatch(text):
                    raise OutputError(
                        f"{path} names a path of this machine: {key} is {text!r:.200}; replace it "
                        "by a name (and run with --accept-changed-tokenizer if it is a "
                        "tokenizer's), or train and export again"
                    )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON value, with its key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _texts(each, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, key)


def files_of_export(folder: Path, model: list[Path]) -> list[Path]:
    """Files of an ONNX folder, in order.

    Args:
        folder: the folder.
        model: its graph and weights.

    Raises:
        OutputError: something else lies there, such as states of a run, or a link out of it.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and role_of(name) is Role.TEXT:
            continue
        known = path in model or name in _OF_AN_EXPORT or role_of(name) is Role.TEXT
        if not known or not path.is_file():
            raise OutputError(
                f"{path} is no part of an export; remove it, or export into a folder of its own"
            )
        if path not in model and folder.resolve() not in path.resolve().parents:
            raise OutputError(f"{path} is a link out of its folder; put the file itself there")
        found.append(path)
    return found
