"""Bits and bytes of ggml rows: a row is a run of equal blocks, each a struct of small arrays.

Codes narrower than a byte share bytes in one of two ways, and every type uses some of each:

    stacked    byte j holds element j of several runs: the first run in the lowest bits
    adjacent   byte j holds consecutive elements: the first in the lowest bits

which is the same thing after a transpose. Numbers are little endian. Source:
ggml/src/ggml-common.h (block structs), ggml/src/gguf.cpp (rows are whole blocks).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.gguf.ggml_types import GgmlType

Bytes = NDArray[np.uint8]


def stack(codes: Bytes, width: int) -> Bytes:
    """Put runs (..., runs, n) of `width`-bit codes into bytes (..., n)."""
    shifts = np.arange(codes.shape[-2], dtype=np.uint8)[:, None] * np.uint8(width)
    return np.bitwise_or.reduce(codes << shifts, axis=-2)


def unstack(octets: Bytes, width: int) -> Bytes:
    """Undo `stack`: bytes (..., n) to 8 / width runs (..., runs, n)."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    return octets[..., None, :] >> shifts & np.uint8((1 << width) - 1)


def adjacent(codes: Bytes, width: int) -> Bytes:
    """Put consecutive `width`-bit codes (..., n) into bytes (..., n * width / 8)."""
    runs = codes.reshape(*codes.shape[:-1], -1, 8 // width)
    return stack(runs.swapaxes(-1, -2), width)


def apart(octets: Bytes, width: int) -> Bytes:
    """Undo `adjacent`: bytes (..., n) to codes (..., n * 8 / width)."""
    return unstack(octets, width).swapaxes(-1, -2).reshape(*octets.shape[:-1], -1)


def in_blocks(numbers: NDArray[Any], kind: GgmlType, *shape: int) -> NDArray[Any]:
    """Codes (out, in) as (out, blocks, *shape)."""
    rows, columns = numbers.shape
    return numbers.reshape(rows, kind.blocks(columns), *shape)


def join(kind: GgmlType, *parts: NDArray[Any]) -> Bytes:
    """Rows of bytes (out, row bytes) of blocks made of `parts`, in their order.

    Args:
        kind: the type.
        parts: the members of the block's struct: (out, blocks) or (out, blocks, n) of any type.
    """
    rows, blocks = parts[0].shape[:2]
    octets = [
        np.ascontiguousarray(part, part.dtype.newbyteorder("<"))
        .reshape(rows, blocks, -1)
        .view(np.uint8)
        for part in parts
    ]
    joined = np.concatenate(octets, axis=2)
    assert joined.shape[2] == kind.nbytes
    return joined.reshape(rows, -1)


def split(kind: GgmlType, data: Bytes, *sizes: int) -> list[Bytes]:
    """Undo `join`: the members (out, blocks, size) of rows of bytes (out, row bytes)."""
    rows, row_bytes = data.shape
    blocks = np.ascontiguousarray(data).reshape(rows, row_bytes // kind.nbytes, kind.nbytes)
    ends = np.cumsum(sizes)
    assert ends[-1] == kind.nbytes
    return np.split(blocks, ends[:-1], axis=2)


def halves(part: Bytes) -> NDArray[np.float16]:
    """A member of two bytes (out, blocks, 2) as float16 (out, blocks)."""
    return np.ascontiguousarray(part).view("<f2")[:, :, 0].astype(np.float16)
