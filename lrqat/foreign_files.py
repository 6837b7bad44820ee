"""Files that nobody vouches for: opened only if they are files, read only up to a size.

A named pipe in place of a file would be waited for without end, and /dev/zero read without end, so
whatever others wrote is asked first what it is. JSON is bounded before it is parsed: a value
takes up to some hundred bytes in memory, so values are counted, which costs nothing, and a file
that is refused is refused within a second and a gigabyte.
"""

import gc
import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from lrqat.errors import UserError

_MOST_BYTES = 1 << 26
_MOST_VALUES = 1 << 20  # a file of 100,000 tensors is described in 900,000
MOST_HEADER_BYTES = 1 << 24  # of safetensors, whose own limit is 100 MB
MOST_TOKENIZER_VALUES = 3_000_000  # the largest tokenizer.json known has two million, and 33 MB
# A tokenizer's "no limit" is int(1e30). Python takes the square of the digits to read an integer.
_MOST_DIGITS = 100


class ForeignFileError(UserError):
    """A file that is missing, no file, too large, or not the JSON that it should be."""


def open_regular(path: Path) -> BinaryIO:
    """Open a file, not a pipe, socket, device or folder, to read its bytes.

    Raises:
        OSError: it is missing, not to be read, or no regular file; `strerror` says so.
    """
    # Without O_NONBLOCK, opening a named pipe waits for somebody who writes.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
    stream = os.fdopen(descriptor, "rb") if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    if stream is None:
        os.close(descriptor)
        raise OSError(None, "it is no regular file", str(path))
    return stream


_BINARY = getattr(os, "O_BINARY", 0)  # Windows changes line ends otherwise


def read_bytes(path: Path, most: int = _MOST_BYTES) -> bytes:
    """All of a regular file.

    Raises:
        ForeignFileError: it cannot be read, is no regular file, or has more than `most` bytes.
    """
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            data = stream.read(size if size <= most else 0)  # else a buffer of `most` is made
    except OSError as error:
        raise ForeignFileError(
            f"{path} cannot be read: {error.strerror}; use an intact copy"
        ) from None
    if size > most:
        raise ForeignFileError(
            f"{path} has more than {most:,} bytes, which none of its kind has; use an intact copy"
        )
    return data


def read_json(path: Path, most_values: int = _MOST_VALUES) -> dict[str, Any]:
    """The object that a file of JSON holds, of at most `most_values` values.

    Raises:
        ForeignFileError: it cannot be read, or is not a JSON object; see `parse_json`.
    """
    data = read_bytes(path)
    try:
        value = parse_json(data, most_values)
    except ValueError as error:
        raise ForeignFileError(
            f"{path} cannot be read as JSON: {error}; use an intact copy"
        ) from None
    if not isinstance(value, dict):
        raise ForeignFileError(f"{path} holds no JSON object; use an intact copy")
    return value


def parse_json(data: bytes, most_values: int = _MOST_VALUES) -> Any:
    """What JSON says, with no key twice in an object and no text that UTF-8 cannot hold.

    Raises:
        ValueError: it is not JSON, has more than `most_values` values, is nested a thousand deep,
            or has a number of more than a hundred digits.
    """
    # Every value but the first of an object or list follows a comma.
    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if values > most_values:
        raise ValueError(f"it has more than {most_values:,} values")
    collecting = gc.isenabled()
    gc.disable()  # there are no circles in JSON, and looking for them takes most of the time
    try:
        value = json.loads(data.decode("utf-8"), parse_int=_integer, object_pairs_hook=_object)
        if b"\\u" in data:  # half of a surrogate pair, which only an escape can write
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 ({error})") from None
    except UnicodeEncodeError:
        raise ValueError("it has a text of no valid Unicode, half a surrogate pair") from None
    finally:
        if collecting:
            gc.enable()
    return value


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"it has an integer of {len(digits)} digits")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise ValueError(f"the key {twice!r:.80} occurs twice")
    return made


def refuse_irregular(folder: Path, kind: type[UserError] = ForeignFileError) -> None:
    """Refuse a folder in which a library might wait for a pipe, or read a JSON file without end.

    Raises:
        UserError: of class `kind`; something directly in it is neither a file nor a folder, is a
            file of JSON that `parse_json` would not even begin with, or has a safetensors header as
            long.
    """
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            continue
        if path.exists() and not path.is_file():
            raise kind(f"{path} is neither a file nor a folder (a pipe, a device); remove it")
        if path.suffix == ".safetensors":
            with open_regular(path) as stream:
                length = int.from_bytes(stream.read(8), "little")
            if length > MOST_HEADER_BYTES:
                raise kind(
                    f"{path} is damaged: it says that its header has {length:,} bytes; use an "
                    "intact copy"
                )
        if path.suffix == ".json":
            data = read_bytes(path)
            if data.count(b",") > MOST_TOKENIZER_VALUES:
                raise kind(f"{path} has millions of values; use an intact copy")
