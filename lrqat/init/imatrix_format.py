"""The two file forms of llama.cpp's importance matrix, as entries by llama.cpp's tensor name.

    GGUF, version 3:  "GGUF"  u32 version  u64 tensors  u64 entries
                      entries (general.type = "imatrix"), tensor descriptions, padding, data
                      NAME.in_sum2  F32 (matrices, in)   sums of x_j^2
                      NAME.counts   F32 (matrices, 1)    tokens in each sum
    legacy (.dat):    i32 entries, then of each: i32 length, NAME, i32 calls, i32 n, f32[n]
                      then, or nothing: i32 last call, and i32 length, name of the text

Both are little-endian; `matrices` is 1 but for experts; tensors of other names are passed over.

Nobody vouches for a file. Every count is compared with the bytes that are left before anything is
made of it, and with what a model can need; tensors may not overlap, and nothing but F32 is read.
(gguf.GGUFReader 0.19 trusts counts.) Source: tools/imatrix/imatrix.cpp and
common/imatrix-loader.cpp of llama.cpp.
"""

import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lrqat.errors import UserError
from lrqat.foreign_files import open_regular

Floats = NDArray[np.float32]

# The largest mixtures of experts have fewer than 100,000 tensors with one for each expert; strings
# in arrays are names of texts.
_MOST = {
    "entries": 1 << 17,
    "tensors": 1 << 18,
    "metadata entries": 1 << 12,
    "strings": 1 << 16,
    "bytes of text": 1 << 25,
}

_SUMS, _COUNTS = ".in_sum2", ".counts"
_F32 = 0  # GGML_TYPE_F32
_STRING, _ARRAY, _UINT32 = 8, 9, 4
# Bytes of a metadata value by its type, the numbers of enum gguf_type (ggml/include/gguf.h).
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class ImatrixFileError(UserError):
    """An importance matrix that is missing, damaged, or of another model."""


class Entry(NamedTuple):
    """What a file says of one tensor, as it stands: the values have not been checked.

    Attributes:
        sums: float32 (n,), of all matrices one after the other.
        counts: float32 (matrices,), or (1,) for all; what `sums` must be divided by.
    """

    sums: Floats
    counts: Floats


def read_entries(path: Path) -> dict[str, Entry]:
    """Read every entry of a file, views of it where that is possible.

    Raises:
        ImatrixFileError: the file is missing, truncated, damaged, or of another kind.
    """
    try:
        with open_regular(path) as stream:
            data: NDArray[np.uint8] = np.memmap(stream, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise ImatrixFileError(f"{path} cannot be read: {error}") from None
    cursor = _Cursor(path, data)
    is_gguf = data[:4].tobytes() == b"GGUF"
    entries = _read_gguf(cursor) if is_gguf else _read_legacy(cursor)
    if not entries:
        raise cursor.error("it holds no entry")
    return entries


def _read_legacy(cursor: "_Cursor") -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    count = cursor.count("i")
    cursor.expect(count, 16, "entries")
    for _ in range(count):
        name = cursor.string("i")
        calls = cursor.count("i")
        values = cursor.floats(cursor.count("i"))
        if name in entries:
            raise cursor.error(f"{name!r} occurs twice")
        entries[name] = Entry(values, np.array([calls], np.float32))
    if cursor.left:
        cursor.number("i")
    if cursor.left:
        cursor.string("i")
    if cursor.left:
        raise cursor.error(f"{cursor.left} bytes follow its end")
    return entries


def _read_gguf(cursor: "_Cursor") -> dict[str, Entry]:
    cursor.take(4)
    version = cursor.number("I")
    if version != 3:
        raise cursor.error(f"it has GGUF version {version}, and only 3 is read here")
    tensors, pairs = cursor.count("Q"), cursor.count("Q")
    cursor.expect(pairs, 13, "metadata entries")
    alignment = _read_metadata(cursor, pairs)
    cursor.expect(tensors, 32, "tensors")
    sizes: dict[str, int] = {}
    position = 0  # in the data: each tensor begins where the one before it ends, padded
    for _ in range(tensors):
        name, size, offset = _read_description(cursor)
        if name in sizes or offset != position:
            raise cursor.error(f"the tensor {name!r} occurs twice or is not where it must be")
        sizes[name] = size
        position += _padded(4 * size, alignment)
    start = _padded(cursor.position, alignment)
    values: dict[str, Floats] = {}
    for name, size in sizes.items():
        cursor.position = start
        values[name] = cursor.floats(size)
        start += _padded(4 * size, alignment)
    names = {n.removesuffix(end) for end in (_SUMS, _COUNTS) for n in values if n.endswith(end)}
    if any({name + _SUMS, name + _COUNTS} - set(values) for name in names):
        raise cursor.error(f"its tensors are not pairs of {_SUMS} and {_COUNTS}")
    return {name: Entry(values[name + _SUMS], values[name + _COUNTS]) for name in sorted(names)}


def _read_metadata(cursor: "_Cursor", pairs: int) -> int:
    """Pass over the metadata; return the alignment of the data in bytes."""
    kind, alignment = None, 32
    for _ in range(pairs):
        key, form = cursor.string("Q"), cursor.number("I")
        if key == "general.type" and form == _STRING:
            kind = cursor.string("Q")
        elif key == "general.alignment" and form == _UINT32:
            alignment = cursor.number("I")
        else:
            cursor.skip(form)
    if kind != "imatrix":
        raise cursor.error(f"its general.type is {kind!r}, not 'imatrix'")
    if not 8 <= alignment <= 2**20 or alignment & (alignment - 1):
        raise cursor.error(f"its alignment is {alignment}")
    return alignment


def _read_description(cursor: "_Cursor") -> tuple[str, int, int]:
    """Name, number of values, and offset of the next tensor."""
    name, dimensions = cursor.string("Q"), cursor.number("I")
    if not 1 <= dimensions <= 4:
        raise cursor.error(f"the tensor {name!r} has {dimensions} dimensions")
    size = math.prod(cursor.count("Q") for _ in range(dimensions))
    kind, offset = cursor.number("I"), cursor.number("Q")
    if kind != _F32 or size < 1:
        raise cursor.error(f"the tensor {name!r} has {size} values of type {kind}, not F32")
    return name, size, offset


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


class _Cursor:
    """A position in the file that never passes its end."""

    def __init__(self, path: Path, data: NDArray[np.uint8]) -> None:
        self.path, self.data, self.position = path, data, 0
        self._left = dict(_MOST)

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def error(self, what: str) -> ImatrixFileError:
        return ImatrixFileError(
            f"{self.path} is not a valid importance matrix: {what}; make it again with "
            "llama-imatrix"
        )

    def expect(self, count: int, item_bytes: int, what: str) -> None:
        """Raise unless `count` items of at least `item_bytes` can still follow.

        Of what is in `_MOST`, no file may have more than that in all.
        """
        if count * item_bytes > self.left:
            raise self.error(f"it announces {count} {what} and is too short for them")
        if what in self._left:
            self._left[what] -= count
            if self._left[what] < 0:
                raise self.error(f"it announces {count} {what}, more than any model has")

    def take(self, size: int) -> NDArray[np.uint8]:
        self.expect(size, 1, "bytes")
        self.position += size
        return self.data[self.position - size : self.position]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)).tobytes())[0]

    def count(self, code: str) -> int:
        """A number that counts something: not negative, whatever its type allows."""
        number: int = self.number(code)
        if number < 0:
            raise self.error(f"it has {number} where a count must be")
        return number

    def string(self, code: str) -> str:
        """A string after its length in bytes."""
        size = self.count(code)
        self.expect(size, 1, "bytes of text")
        try:
            return self.take(size).tobytes().decode("utf-8")
        except UnicodeDecodeError:
            raise self.error("a name is not UTF-8") from None

    def floats(self, size: int) -> Floats:
        """The next `size` float32, a view of the file where the machine is little-endian."""
        self.expect(size, 4, "numbers")
        return self.take(4 * size).view("<f4").astype(np.float32, copy=False)

    def skip(self, form: int) -> None:
        """Pass over a metadata value of type `form`."""
        if form == _STRING:
            self.take(self.count("Q"))
        elif form == _ARRAY:
            self._skip_array()
        elif form in _SCALAR_BYTES:
            self.take(_SCALAR_BYTES[form])
        else:
            raise self.error(f"an entry has the unknown type {form}")

    def _skip_array(self) -> None:
        form, length = self.number("I"), self.count("Q")
        if form == _STRING:
            self.expect(length, 8, "strings")
            for _ in range(length):
                self.skip(_STRING)
        elif form in _SCALAR_BYTES:
            self.take(length * _SCALAR_BYTES[form])
        else:
            raise self.error(f"an array has items of type {form}")
