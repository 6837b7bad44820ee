"""Reading safetensors files that nobody vouches for, a tensor or some of its rows at a time.

    u64 size of the header, the header as JSON, the data:
    {name: {"dtype": "F32", "shape": [out, in], "data_offsets": [start, end]}, ...}

The safetensors package maps the file, and every page that was looked at counts as this process's
memory while the file is open: after one pass over a model, the whole model. Here a tensor is read
into an array of its own and nothing stays. The header has to be what that package would accept
(safetensors/src/tensor.rs `Metadata::validate`): tensors fill the data without gap or overlap, and
each has as many bytes as its type and shape need.
"""

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lrqat.errors import CheckpointError
from lrqat.foreign_files import MOST_HEADER_BYTES, open_regular, parse_json

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        dtype: its type's name in safetensors: F32, BF16, I32 ...
        shape: its shape.
        start: position of its data in the file, in bytes.
        nbytes: length of its data.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


class TensorFile:
    """A file whose header has been read and checked.

    Attributes:
        path: the file.
        tensors: what it holds, by name.
    """

    def __init__(self, path: Path) -> None:
        """Read the header. Raises CheckpointError if it is not one."""
        self.path = path
        try:
            self._identity = _identity(path.stat())
            self.tensors = _read_header(path)
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{path} cannot be read as safetensors: {error}; restore it, or train again"
            ) from None

    def read(self, name: str, rows: slice = slice(None)) -> NDArray[Any]:
        """Read a tensor, or some consecutive rows of it, in the type that it is stored in.

        Args:
            name: of a tensor of the file.
            rows: which entries of the first dimension; the step must be 1.

        Raises:
            CheckpointError: the file is not the one whose header was read, or has been written to.
        """
        stored = self.tensors[name]
        shape, start, nbytes = stored.shape, stored.start, stored.nbytes
        if rows != slice(None):
            first, last, _ = rows.indices(shape[0])
            row_bytes = nbytes // max(shape[0], 1)
            shape = (max(last - first, 0), *shape[1:])
            start, nbytes = start + first * row_bytes, shape[0] * row_bytes
        try:
            with self.path.open("rb") as stream:
                if _identity(os.fstat(stream.fileno())) != self._identity:
                    raise CheckpointError(
                        f"{self.path} was replaced or changed while it was read; run again"
                    )
                data = np.fromfile(stream, np.uint8, count=nbytes, offset=start)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}") from None
        if len(data) != nbytes:
            raise CheckpointError(f"{self.path} ends inside {name!r}; restore it, or train again")
        return data.view(_DTYPES[stored.dtype]).reshape(shape)


def _identity(found: os.stat_result) -> tuple[int, int, int, int]:
    """What tells a file from the one that takes its name, and from itself once it is changed."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """Raises ValueError, saying what is wrong."""
    with open_regular(path) as stream:
        size = path.stat().st_size - 8
        length = struct.unpack("<Q", stream.read(8))[0] if size >= 0 else 0
        if not 2 <= length <= min(size, MOST_HEADER_BYTES):
            raise ValueError(f"its header has {length} of {max(size, 0)} bytes")
        header = parse_json(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    found = {name: _parse(name, entry, 8 + length) for name, entry in header.items()}
    end = 8 + length
    for name, stored in sorted(found.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if stored.start != end:
            raise ValueError(f"the data of {name!r} is not where it must be")
        end += stored.nbytes
    if end != size + 8:
        raise ValueError(f"its tensors end at byte {end} of {size + 8}")
    return found


def _parse(name: str, entry: Any, base: int) -> StoredTensor:
    if not isinstance(entry, dict):
        raise ValueError(f"{name!r} is not described")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"{name!r} has the type {str(dtype)[:40]}")
    if not (_are_counts(shape) and _are_counts(offsets) and len(offsets) == 2):
        raise ValueError(f"{name!r} has no valid shape or place")
    nbytes = math.prod(shape) * _DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise ValueError(f"{name!r} has another size than its shape")
    return StoredTensor(dtype, tuple(shape), base + offsets[0], nbytes)


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
