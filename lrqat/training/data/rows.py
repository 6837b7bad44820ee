"""Rows of training data, from a file, a folder, standard input, or a dataset of the hub.

A row is a dict from column to value. A file of plain text is one row, with the column `text`. Of a
folder, the files with "train" in their name are read, or all if none has it; they must be of one
form.
"""

import csv
import io
import itertools
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from lrqat.errors import DataError, first_line
from lrqat.text_files import (
    JSON_LINES,
    PLAIN_TEXT,
    ROWS,
    form_of,
    is_packed,
    open_bytes,
    open_text,
    read_text,
)

Row = dict[str, Any]
STANDARD_INPUT = "-"  # as --data; it can be read once


def read_rows(source: str) -> Iterator[Row]:
    """The rows of `source`, one at a time.

    Args:
        source: path of a file or folder; `-`, standard input; or the name of a Hugging Face
            dataset, whose `train` split is streamed (`name:config` picks a configuration).

    Raises:
        DataError: nothing there, or not readable.
    """
    if source == STANDARD_INPUT:
        yield from _standard_input()
        return
    path = _on_disk(source)
    if path is None:
        name, _, config = source.partition(":")
        yield from _dataset_rows(
            source, datasets.load_dataset, name, config or None, split="train", streaming=True
        )
    elif _is_saved_dataset(path):
        yield from _dataset_rows(source, _load_saved, path)
    else:
        for file in _files(path):
            yield from _READERS.get(form_of(file), _whole_text)(file)


def check_source(source: str) -> None:
    """Raise DataError if `source` is not there. What a file holds is not looked at."""
    if source == STANDARD_INPUT:
        return
    path = _on_disk(source)
    if path is None:
        name, _, config = source.partition(":")
        with _explained(source):
            datasets.load_dataset_builder(name, config or None)
    elif not _is_saved_dataset(path):
        _files(path)


def _on_disk(source: str) -> Path | None:
    """The path that `source` is; None for the name of a dataset. Raises DataError if missing."""
    path = Path(source)
    if source.strip() and path.exists():
        return path
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1 or not source.strip()
    if looks_local or form_of(path) in (*ROWS, PLAIN_TEXT):
        raise DataError(f"no file at {source.strip() or repr(source)}; check --data")
    return None


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} is neither a file nor a folder; give one to --data")
    below = [file for file in sorted(path.rglob("*")) if file.is_file()]
    known = [
        file
        for file in below
        if form_of(file) in (*ROWS, PLAIN_TEXT)
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    chosen = [file for file in known if _is_for_training(file.relative_to(path))] or known
    forms = sorted({form_of(file) for file in chosen})
    if not forms:
        raise DataError(
            f"the folder {path} holds no text; give a file, or a folder of files called "
            f"{', '.join((PLAIN_TEXT, *ROWS))}"
        )
    if len(forms) > 1:
        raise DataError(
            f"the folder {path} holds files of several forms ({', '.join(forms)}); name the "
            "files, each with a --data of its own, or give a folder of one form"
        )
    return chosen


def _is_for_training(path: Path) -> bool:
    """As Hub repositories and mlx-lm name files: train.jsonl, train-00000-of-00002.parquet."""
    return "train" in re.split("[^a-z]+", str(path).lower())


def _whole_text(path: Path) -> Iterator[Row]:
    yield {"text": read_text(path)}


def _standard_input() -> Iterator[Row]:
    """Rows of JSON, one a line or in a list, or else one text."""
    where = "standard input"
    stream = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig")
    try:
        start = list(itertools.islice((line for line in stream if line.strip()), 1))
        if start and isinstance(_json_or_none(start[0]), dict):
            yield from _objects(where, itertools.chain(start, stream))
            return
        text = "".join(start) + stream.read()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8 text ({error}); convert or unpack it first"
        ) from None
    finally:
        stream.detach()  # or standard input would be closed
    rows = _json_or_none(text) if text.startswith("[") else None
    if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
        yield from rows
    else:
        yield {"text": text}


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _json_lines(path: Path) -> Iterator[Row]:
    with open_text(path) as stream:
        yield from _objects(str(path), stream)


def _json_file(path: Path) -> Iterator[Row]:
    """A list of objects, or one a line: both are called .json."""
    with open_text(path) as stream:
        text = stream.read()
    if not text.lstrip().startswith("["):
        yield from _objects(str(path), io.StringIO(text))
        return
    for number, value in enumerate(_parsed(str(path), text), 1):
        yield _object(f"entry {number} of {path}", value)


def _objects(source: str, lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"line {number} of {source}"
            yield _object(where, _parsed(where, line))


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"cannot read {where} as JSON ({error}); one object a line is needed, or in a .json "
            "file a list of them"
        ) from None


def _object(where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise DataError(
            f'{where} is a {type(value).__name__}; an object such as {{"text": "..."}} is needed'
        )
    return value


def _table(builder: str, path: Path, **options: Any) -> Iterator[Row]:
    with _unpacked(path) as plain:
        named = {"data_files": str(plain), "split": "train", "streaming": True, **options}
        yield from _dataset_rows(str(path), datasets.load_dataset, builder, **named)


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """A file as it is, or unpacked on disk: Parquet is read from its end."""
    if not is_packed(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="lrqat-") as folder:
        plain = Path(folder, path.stem)
        with open_bytes(path) as stream, plain.open("wb") as file:
            shutil.copyfileobj(stream, file)
        yield plain


def _csv(path: Path, sep: str = ",") -> Iterator[Row]:
    """Every cell is text: "NA", "null" and "007" too."""
    columns: list[str] = []
    with open_text(path) as stream, suppress(csv.Error):  # which pandas then explains
        columns = next(csv.reader(stream, delimiter=sep), [])
    features = datasets.Features({name: datasets.Value("string") for name in columns})
    yield from _table("csv", path, sep=sep, keep_default_na=False, features=features or None)


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    **dict.fromkeys(JSON_LINES, _json_lines),
    ".json": _json_file,
    ".csv": _csv,
    ".tsv": partial(_csv, sep="\t"),
    ".parquet": partial(_table, "parquet"),
    ".arrow": partial(_table, "arrow"),
}


def _dataset_rows(
    source: str, load: Callable[..., Any], *arguments: Any, **options: Any
) -> Iterator[Row]:
    with _explained(source):
        for row in load(*arguments, **options):
            yield {column: _without_nulls(value) for column, value in row.items()}


def _is_saved_dataset(path: Path) -> bool:
    """Whether `path` is what a dataset's save_to_disk() has written."""
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _load_saved(path: Path) -> Any:
    found = datasets.load_from_disk(str(path))
    return found["train"] if isinstance(found, dict) else found


@contextmanager
def _explained(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # datasets wraps whatever pyarrow, the network or a script raises
        reason = first_line(error)
        raise DataError(
            f"cannot read {source!r} as a file or a Hugging Face dataset: {reason}"
        ) from None


def _without_nulls(value: Any) -> Any:
    """`value` without the keys in it that are null: Arrow gives a message the keys of all others.

    A chat template may ask whether a key is there.
    """
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
