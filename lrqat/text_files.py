"""Files of text, told by their suffix in any case: plain text, or rows of columns.

    rows         .jsonl .ndjson .json .parquet .arrow .csv .tsv
    plain text   .txt, and any other file that is UTF-8 text

A file of rows is never taken for plain text: its braces and column names would be learned, and
are so easy to predict that a perplexity measured on them says nothing. A packed file
(`rows.jsonl.gz`, `.bz2`, `.xz`, `.zst`) is what it is unpacked.
"""

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from lrqat.errors import DataError

JSON_LINES = (".jsonl", ".ndjson", ".json")
ROWS = (*JSON_LINES, ".parquet", ".arrow", ".csv", ".tsv")
PLAIN_TEXT = ".txt"


def _open_zstd(path: Path) -> Any:
    import pyarrow  # comes with datasets, and is slow to import

    return pyarrow.input_stream(str(path), compression="zstd")


# Unpacked here; of the others it is only known that they are compressed.
_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}
_COMPRESSED = (*_OPENERS, ".zip", ".7z", ".tar", ".tgz")


def form_of(path: Path) -> str:
    """The suffix that says what a file holds: ".jsonl" of `rows.JSONL` and of `rows.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_packed(path: Path) -> bool:
    """Whether `open_bytes` unpacks a file of that name."""
    return path.suffix.lower() in _OPENERS


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file, and unpack it as it is read.

    Raises:
        DataError: missing, packed in a way that is not known here, or damaged.
    """
    if not path.is_file():
        raise DataError(f"no text file at {path}; check the path")
    suffix = path.suffix.lower()
    if suffix in _COMPRESSED and suffix not in _OPENERS:
        raise DataError(
            f"{path} is compressed as {suffix}, which is not read here; unpack it, or pack it as "
            f"{', '.join(_OPENERS)}"
        )
    try:
        with _OPENERS[suffix](path) if suffix in _OPENERS else path.open("rb") as stream:
            yield stream
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        if getattr(error, "errno", None) is not None:  # of the file system, not of what it holds
            raise
        raise DataError(f"{path} cannot be unpacked: {error}; fetch it again") from None


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a file of text, packed or not; a byte-order mark is left out, line ends become LF.

    Raises:
        DataError: as of `open_bytes`, or not UTF-8.
    """
    with open_bytes(path) as stream:
        try:
            yield io.TextIOWrapper(stream, encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error) from None


def read_text(path: Path) -> str:
    """The whole of a file of plain text.

    Raises:
        DataError: missing, not UTF-8 text, blank, or rows.
    """
    with open_text(path) as stream:
        text = stream.read()
    refuse_no_text(path, text)
    return text


def decode(path: Path, data: bytes) -> str:
    """`data`, the content of `path`, as it is: byte-order mark and line ends too.

    Raises:
        DataError: not UTF-8 text, blank, or rows.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    refuse_no_text(path, text)
    return text


def refuse_no_text(path: Path, text: str) -> None:
    """Raise DataError for a text that is blank, binary, or rows under another suffix."""
    if not text.strip():
        raise DataError(f"{path} is empty; give some text")
    if "\0" in text:
        raise DataError(f"{path} holds NUL characters and is no text; convert it first")
    if _are_objects(text):
        raise DataError(
            f"{path} holds a JSON object a line, and would be taken for plain text; "
            "rename it to .jsonl"
        )


def _are_objects(text: str) -> bool:
    """Whether the first two lines, or the only one, that are not blank are JSON objects."""
    if text.lstrip()[:1] != "{":
        return False
    for line in text.lstrip().split("\n", 2)[:2]:
        try:
            if line.strip() and not isinstance(json.loads(line), dict):
                return False
        except (ValueError, RecursionError):
            return False
    return True


def _not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    return DataError(f"{path} is not UTF-8 text ({error}); convert it first")
