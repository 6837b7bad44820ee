"""A run as a file of YAML: the options of `lrqat train` by their names, without the dashes.

    model: HuggingFaceTB/SmolLM2-135M-Instruct
    data: [chats.jsonl:0.8, book.txt:0.2]
    grid: q4_0
    output: runs/a

Names may have hyphens or underscores. Paths are relative to where the command is started, as on
the command line. A file may come from anybody: it is read as a tree of texts
(`lrqat.foreign_yaml`), and every value is converted as the command line converts it.
"""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from lrqat import __version__, foreign_yaml
from lrqat.atomic_files import replaced_file
from lrqat.checkpoint.publishing import RUN, STATES
from lrqat.errors import UserError, did_you_mean
from lrqat.settings import flag, groups_of
from lrqat.training.config import TrainConfig

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_REMEDY = "see docs/run-files.md"


def read_run(path: str | Path) -> dict[str, Any]:
    """The settings that a file names, as fields of `TrainConfig`.

    Raises:
        UserError: it cannot be read, has more than 64 KiB, is no YAML, or has a key or value that
            is none.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give its file: {path / STATES / RUN}")
    text = foreign_yaml.read_text(path, _REMEDY)
    try:
        return parse_run(text)
    except ValueError as error:
        raise UserError(f"the run {path} cannot be used: {error}; {_REMEDY}") from None


def parse_run(text: str) -> dict[str, Any]:
    """The settings that a text of YAML names. Raises ValueError: it is none, or names others."""
    names = {_key(field): field.name for field in dataclasses.fields(TrainConfig)}
    hints = typing.get_type_hints(TrainConfig)
    found: dict[str, Any] = {}
    for key, node in foreign_yaml.mapping(foreign_yaml.tree(text), "a run").items():
        name = names.get(key.replace("_", "-"))
        if name is None:
            hint = did_you_mean(key[:100], names) or "the options of lrqat train are the keys. "
            raise ValueError(f"unknown key {key!r:.100}: {hint.rstrip()}")
        if name in found:
            raise ValueError(f"{key!r} occurs twice, with a hyphen and an underscore")
        value = _value(node, key, hints[name])
        if value is not None:
            found[name] = value
    return found


def format_run(config: TrainConfig) -> str:
    """All settings of a run, resolved, as YAML that `parse_run` reads as the same."""
    values = config.to_json()
    lines = [
        f"# Settings of a run of lrqat {__version__}, resolved. To repeat it:",
        "# lrqat train run.yaml --output ANOTHER_FOLDER",
    ]
    for title, fields in groups_of(TrainConfig):
        given = {_key(f): values[f.name] for f in fields if values[f.name] not in (None, [])}
        if given:
            lines += ["", f"# {title}", foreign_yaml.written(given).rstrip()]
    return "\n".join(lines) + "\n"


def write_run(config: TrainConfig, path: str | Path, *, overwrite: bool = False) -> None:
    """Write the settings of a run, whole or not at all.

    Raises:
        OutputError: the file exists and `overwrite` is false, or it cannot be written.
    """
    with replaced_file(Path(path), overwrite) as staged:
        staged.write_text(format_run(config), encoding="utf-8")


def _key(field: dataclasses.Field[Any]) -> str:
    return flag(field.name).removeprefix("--")


def _value(node: yaml.Node, key: str, hint: Any) -> Any:
    """A value, converted as the hint of its field says; None: the default."""
    may_be = kinds(hint)
    if any(typing.get_origin(kind) is tuple for kind in may_be):
        return tuple(foreign_yaml.texts(node, repr(key)))
    text = foreign_yaml.scalar(node, repr(key))
    if text is None:
        return None
    kind = may_be[0]
    if kind is bool:
        if text.lower() not in _WORDS:
            raise ValueError(f"{key} {text!r:.100} must be true or false")
        return _WORDS[text.lower()]
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"{key} {text!r:.100} must be {what}") from None


def kinds(hint: Any) -> list[Any]:
    """What a value may be, without None: of `int | None`, int."""
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return [part for part in parts if part is not type(None)]
