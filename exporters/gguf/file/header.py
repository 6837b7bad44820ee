"""Reading the header of a GGUF file that nobody vouches for.

    "GGUF"  u32 version  u64 tensors  u64 entries
    entries:  string key, u32 type, value      (string: u64 length, bytes;
                                                array: u32 type, u64 length, items)
    tensors:  string name, u32 dimensions, u64 each, u32 type, u64 offset
    padding to the alignment, then the tensors' data, each padded

Every count is compared with the bytes that are left before anything is made of it, and with what a
model can need, so that a file that is refused is refused within seconds and a gigabyte, whatever
its size and whatever it says. (gguf.GGUFReader 0.19 trusts counts: a file of 43 bytes can hang it.)
Arrays of numbers are numpy's. The file is mapped only while its header is read: mapped pages count
as memory, so data is read into arrays instead. Source: ggml/src/gguf.cpp, whose rules on names,
dimensions and offsets are the ones applied here.
"""

import math
import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType as Type
from numpy.typing import NDArray

from exporters.gguf.layout.ggml_types import TYPES, GgmlType
from lrqat.errors import UserError
from lrqat.foreign_files import open_regular

_MAX_DIMENSIONS = 4
# The largest vocabularies have 262,144 tokens and 514,906 merges, the largest mixtures of experts
# fewer than 100,000 tensors with one for each expert.
_MOST = {"metadata entries": 1 << 16, "tensors": 1 << 17, "strings": 1 << 21, "numbers": 1 << 24}
_MOST_TEXT = 1 << 26  # bytes of all strings together
_SCALARS = {
    Type.UINT8: "B",
    Type.INT8: "b",
    Type.UINT16: "H",
    Type.INT16: "h",
    Type.UINT32: "I",
    Type.INT32: "i",
    Type.FLOAT32: "f",
    Type.UINT64: "Q",
    Type.INT64: "q",
    Type.FLOAT64: "d",
    Type.BOOL: "?",
}
_CODES = {int(kind): code for kind, code in _SCALARS.items()}


class GgufFileError(UserError):
    """A GGUF file that is truncated, altered or not one at all."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        path: the file.
        name: its name.
        type: its ggml type; its number alone where none is known.
        shape: (out, in) or (n,), the reverse of the order in the file.
        start: position of its data in the file, in bytes.
        nbytes: length of its data; of an unknown type, up to the next tensor.
    """

    path: Path
    name: str
    type: GgmlType | int
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def type_name(self) -> str:
        """Its type for people: Q4_0, or the number of an unknown one."""
        return self.type.name if isinstance(self.type, GgmlType) else f"type {self.type}"

    def read(self, rows: slice = slice(None)) -> NDArray[np.uint8]:
        """Its bytes, or those of consecutive rows of it, as (rows, row bytes).

        Raises:
            GgufFileError: the file has become shorter since.
        """
        count = math.prod(self.shape[:-1])
        row_bytes = self.nbytes // count
        first, last, _ = rows.indices(count)
        size, start = (last - first) * row_bytes, self.start + first * row_bytes
        data = np.fromfile(self.path, np.uint8, count=size, offset=start)
        if len(data) != size:
            raise GgufFileError(f"{self.path} ends inside {self.name!r}; export it again")
        return data.reshape(-1, row_bytes)


@dataclass(frozen=True)
class Header:
    """What a file says before its data.

    Attributes:
        metadata: values by key; arrays are lists of strings, or numpy arrays of numbers.
        tensors: by name, in file order.
    """

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    def said(self, key: str) -> str | int | float | None:
        """A value that is no array; None if there is none."""
        value = self.metadata.get(key)
        return None if isinstance(value, list | np.ndarray) else value


def read_header(path: Path, unknown_types: bool = False) -> Header:
    """Read and check everything but the tensors' data.

    Args:
        path: the file.
        unknown_types: accept tensors of types that `exporters.gguf.layout.ggml_types` does not
            have.

    Raises:
        GgufFileError: the file is missing, truncated, altered, or not GGUF version 3.
    """
    try:
        with open_regular(path) as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise GgufFileError(f"{path} cannot be read: {error}") from None
    with data:
        return _read(_Cursor(path, data), unknown_types)


def _read(cursor: "_Cursor", unknown_types: bool) -> Header:
    if cursor.take(4) != b"GGUF":
        raise cursor.error("it does not begin with GGUF")
    version = cursor.number("I")
    if version != 3:
        raise cursor.error(f"it has version {version}, and only 3 is read here")
    tensor_count, entry_count = cursor.number("Q"), cursor.number("Q")
    cursor.expect(entry_count, 13, "metadata entries")
    metadata: dict[str, Any] = {}
    for _ in range(entry_count):
        key = cursor.string()
        if key in metadata:
            raise cursor.error(f"the key {key!r} occurs twice")
        metadata[key] = cursor.value(cursor.number("I"))
    cursor.expect(tensor_count, 32, "tensors")
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= 2**20 or alignment & (alignment - 1):
        raise cursor.error(f"its alignment is {alignment!r}")
    infos = _read_tensors(cursor, tensor_count, alignment, unknown_types)
    tensors: dict[str, TensorInfo] = {}
    for info in infos:
        if info.name in tensors:
            raise cursor.error(f"the tensor {info.name!r} occurs twice")
        tensors[info.name] = info
    return Header(metadata, tensors)


def _read_tensors(
    cursor: "_Cursor", count: int, alignment: int, unknown_types: bool
) -> Iterable[TensorInfo]:
    described = [_read_info(cursor, unknown_types) for _ in range(count)]
    base = _padded(cursor.position, alignment)
    ends = [offset for *_, offset in described[1:]] + [cursor.size - base]
    expected = 0
    for (name, kind, shape, offset), end in zip(described, ends, strict=False):
        # Where a tensor of unknown type ends, only the beginning of the next one tells.
        nbytes = end - offset
        if isinstance(kind, GgmlType):
            if shape[-1] % kind.weights:
                raise cursor.error(f"rows of {name!r} are not whole blocks")
            nbytes = math.prod(shape) // kind.weights * kind.nbytes
        if offset != expected or nbytes < 0 or base + offset + nbytes > cursor.size:
            raise cursor.error(f"the data of {name!r} is not where it must be, or is cut off")
        yield TensorInfo(cursor.path, name, kind, shape, base + offset, nbytes)
        expected += _padded(nbytes, alignment)


def _read_info(
    cursor: "_Cursor", unknown_types: bool
) -> tuple[str, GgmlType | int, tuple[int, ...], int]:
    name, dimensions = cursor.string(), cursor.number("I")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise cursor.error(f"the tensor {name!r} has {dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
    number, offset = cursor.number("I"), cursor.number("Q")
    # A weight takes more than 1/8 byte in every type, so no honest shape is larger than this.
    if min(shape) < 1 or math.prod(shape) > 8 * cursor.size:
        raise cursor.error(f"the tensor {name!r} has the shape {shape}")
    if number not in TYPES and not unknown_types:
        raise cursor.error(f"the tensor {name!r} has the unknown type {number}")
    return name, TYPES.get(number, number), shape, offset


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


class _Cursor:
    """A position in the file that never passes its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.size, self.position = path, len(data), 0
        self._data = data
        self._left = {**_MOST, "bytes of text": _MOST_TEXT}

    def error(self, what: str) -> GgufFileError:
        return GgufFileError(f"{self.path} is not a valid GGUF file: {what}; export it again")

    def expect(self, count: int, item_bytes: int, what: str) -> None:
        """Raise unless `count` items of at least `item_bytes` can still follow.

        Of what is in `_MOST`, no file may have more than that in all.
        """
        if count * item_bytes > self.size - self.position:
            raise self.error(f"it announces {count} {what} and is too short for them")
        if what in self._left:
            self._left[what] -= count
            if self._left[what] < 0:
                raise self.error(f"it announces {count} {what}, more than any model has")

    def take(self, size: int) -> bytes:
        self.expect(size, 1, "bytes")
        taken = self._data[self.position : self.position + size]
        self.position += size
        return taken

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        size = self.number("Q")
        self.expect(size, 1, "bytes of text")
        try:
            return self.take(size).decode("utf-8")
        except UnicodeDecodeError:
            raise self.error("a string is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind == Type.STRING:
            return self.string()
        if kind == Type.ARRAY:
            return self.array()
        code = _CODES.get(kind)
        if code is None:
            raise self.error(f"an entry has the unknown type {kind}")
        return self.number(code)

    def array(self) -> list[str] | NDArray[Any]:
        kind, length = self.number("I"), self.number("Q")
        if kind == Type.STRING:
            self.expect(length, 8, "strings")
            return [self.string() for _ in range(length)]
        if kind not in _CODES:
            raise self.error(f"an array has items of type {kind}")
        dtype = np.dtype("<" + _CODES[kind])
        self.expect(length, dtype.itemsize, "numbers")
        return np.frombuffer(self.take(length * dtype.itemsize), dtype)
