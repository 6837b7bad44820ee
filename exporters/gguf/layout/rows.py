"""Bits and bytes of ggml rows: a row is a run of equal blocks, each a struct of small arrays.

Codes narrower than a byte share bytes in one of two ways, and every type uses some of each:

    stacked    byte j holds element j of several runs: the first run in the lowest bits
    adjacent   byte j holds consecutive elements: the first in the lowest bits

numpy is slow on many short runs. So runs and members of a struct are copied whole, as if each were
one element of n bytes (`V`n), and bytes are shifted several at a time, as words, in which nothing
crosses from one byte to the next (or is masked away). Numbers are little endian. Source:
ggml/src/ggml-common.h (block structs), ggml/src/gguf.cpp (rows are whole blocks).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.gguf.layout.ggml_types import GgmlType

Bytes = NDArray[np.uint8]


def stack(codes: Bytes, width: int) -> Bytes:
    """Put runs (..., runs, n) of `width`-bit codes into bytes (..., n)."""
    *outer, runs, n = codes.shape
    elements = np.ascontiguousarray(codes).view(f"V{n}")[..., 0]
    first, *others = (_words(elements[..., run]) for run in range(runs))
    found = first.copy()
    for run, words in enumerate(others, 1):
        found |= words << words.dtype.type(run * width)
    return found.view(np.uint8).reshape(*outer, n)


def unstack(octets: Bytes, width: int) -> Bytes:
    """Undo `stack`: bytes (..., n) to 8 / width runs (..., runs, n)."""
    *outer, n = octets.shape
    words = _words(octets)
    mask = np.full(words.itemsize, (1 << width) - 1, np.uint8).view(words.dtype)
    found = np.empty((*outer, 8 // width), f"V{n}")
    for run in range(8 // width):
        shifted = words >> words.dtype.type(run * width)
        shifted &= mask
        found[..., run] = shifted.view(f"V{n}").reshape(outer)
    return found.view(np.uint8).reshape(*outer, 8 // width, n)


def adjacent(codes: Bytes, width: int) -> Bytes:
    """Put consecutive `width`-bit codes (..., n) into bytes (..., n * width / 8)."""
    count = 8 // width
    words = np.ascontiguousarray(codes).view(f"<u{count}")
    found = words.copy()
    for i in range(1, count):
        found |= words >> words.dtype.type(i * (8 - width))
    return found.astype(np.uint8)


def apart(octets: Bytes, width: int) -> Bytes:
    """Undo `adjacent`: bytes (..., n) to codes (..., n * 8 / width)."""
    count = 8 // width
    words = octets.astype(f"<u{count}")
    found = words.copy()
    for i in range(1, count):
        found |= words << words.dtype.type(i * (8 - width))
    return found.view(np.uint8) & np.uint8((1 << width) - 1)


def _words(octets: NDArray[Any]) -> NDArray[Any]:
    """Bytes as the widest unsigned words that fit: (words,)."""
    flat = np.ascontiguousarray(octets).reshape(-1).view(np.uint8)
    return flat.view(f"<u{math.gcd(flat.size, 8)}")


def in_blocks(numbers: NDArray[Any], ggml: GgmlType, *shape: int) -> NDArray[Any]:
    """Codes (out, in) as (out, blocks, *shape)."""
    rows, columns = numbers.shape
    return numbers.reshape(rows, ggml.blocks(columns), *shape)


def join(ggml: GgmlType, *parts: NDArray[Any]) -> Bytes:
    """Rows of bytes (out, row bytes) of blocks made of `parts`, in their order.

    Args:
        ggml: the type.
        parts: the members of the block's struct: (out, blocks) or (out, blocks, n) of any type.
    """
    rows, blocks = parts[0].shape[:2]
    members = [
        np.ascontiguousarray(part, part.dtype.newbyteorder("<")).reshape(rows, blocks, -1)
        for part in parts
    ]
    sizes = [member.shape[2] * member.itemsize for member in members]
    joined = np.empty((rows, blocks), _struct(ggml, sizes))
    for i, (member, size) in enumerate(zip(members, sizes, strict=True)):
        joined[f"f{i}"] = member.view(f"V{size}")[:, :, 0]
    return joined.view(np.uint8).reshape(rows, -1)


def split(ggml: GgmlType, data: Bytes, *sizes: int) -> list[Bytes]:
    """Undo `join`: the members (out, blocks, size) of rows of bytes (out, row bytes)."""
    blocks = np.ascontiguousarray(data).view(_struct(ggml, sizes))
    members = (np.ascontiguousarray(blocks[f"f{i}"]) for i in range(len(sizes)))
    return [
        member.view(np.uint8).reshape(*blocks.shape, size)
        for member, size in zip(members, sizes, strict=True)
    ]


def _struct(ggml: GgmlType, sizes: Sequence[int]) -> np.dtype[Any]:
    """A block with members f0, f1 ... of so many bytes."""
    assert sum(sizes) == ggml.nbytes
    return np.dtype([(f"f{i}", f"V{size}") for i, size in enumerate(sizes)])


def halves(part: Bytes) -> NDArray[np.float16]:
    """A member of two bytes (out, blocks, 2) as float16 (out, blocks)."""
    return np.ascontiguousarray(part).view("<f2")[:, :, 0].astype(np.float16)
