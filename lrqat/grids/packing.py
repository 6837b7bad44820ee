"""Integers in int32 words, as compressed-tensors' `pack-quantized` format lays them out.

A row of `in` integers of `bits` bits becomes ceil(in * bits / 32) words. Element i is stored as
`q + 2^(bits-1)`, the lowest bits first: with 4 bits, word w holds elements 8w .. 8w+7, element 8w
in bits 0..3. Only 2, 4 and 8 bits are written: there every version of the format agrees (3, 5, 6
and 7 bits changed layout in 2026 under the same name).

Source: compressed_tensors/compressors/pack_quantized/helpers.py, which is the oracle in the tests.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lrqat.grids.grid import Grid

CONTAINER_BITS = (2, 4, 8)
_PIECE_BYTES = 1 << 18


def container_bits(bits: int) -> int:
    """The narrowest container that holds `bits`-bit integers. Raises ValueError above 8."""
    for container in CONTAINER_BITS:
        if bits <= container:
            return container
    raise ValueError(f"no container holds {bits}-bit integers; the widest has 8")


def containers(grid: Grid) -> tuple[int, ...]:
    """Widths that hold the integers of `grid` in two's complement, the narrowest first."""
    return tuple(
        bits
        for bits in CONTAINER_BITS
        if -(1 << bits - 1) <= grid.q_min and grid.q_max < 1 << bits - 1
    )


def bits_in_checkpoint(grid: Grid) -> int:
    """The container of `grid` in a checkpoint.

    Codebooks are stored as their levels, so that scale * q means the same as on other grids.
    """
    return containers(grid)[0] if grid.levels else container_bits(grid.bits)


def pack_grid(q: NDArray[np.int8], grid: Grid) -> NDArray[np.int32]:
    """`pack_rows` with the container of `grid`; codes that start at 0 are centred on 0 first."""
    return pack_rows(q - np.int8(_shift(grid)), bits_in_checkpoint(grid))


def unpack_grid(packed: NDArray[np.int32], grid: Grid, columns: int) -> NDArray[np.int8]:
    """Undo `pack_grid`. Raises ValueError if `packed` has another width than `columns` need."""
    q = unpack_rows(packed, bits_in_checkpoint(grid), columns)
    if shift := _shift(grid):
        q += np.int8(shift)
    return q


def _shift(grid: Grid) -> int:
    """What is taken from the integers of `grid`, to centre codes from 0 on 0."""
    bits = bits_in_checkpoint(grid)
    return 1 << (bits - 1) if grid.q_min == 0 and bits < 8 else 0


def pack_rows(q: NDArray[np.int8], bits: int) -> NDArray[np.int32]:
    """Pack `q` (out, in) int8 into (out, ceil(in * bits / 32)) int32.

    Raises ValueError if an integer does not fit `bits` (2, 4 or 8) in two's complement.
    """
    if bits not in CONTAINER_BITS:
        raise ValueError(f"cannot pack {bits} bits; containers have {CONTAINER_BITS}")
    offset = 1 << (bits - 1)
    if q.size and (q.min() < -offset or q.max() >= offset):
        raise ValueError(f"integers {q.min()}..{q.max()} do not fit {bits} bits")
    per_byte = 8 // bits
    rows, columns = q.shape
    words = -(-columns * bits // 32)
    codes = np.zeros((rows, words * 32 // bits), np.uint8)
    # The shift to unsigned wraps in uint8, which is what we want: -8 + 8 = 0 in 4 bits.
    codes[:, :columns] = q.astype(np.uint8) + np.uint8(offset)
    packed = np.zeros((rows, words * 4), np.uint8)
    for i in range(per_byte):
        packed |= codes[:, i::per_byte] << np.uint8(i * bits)
    return packed.view("<i4")


def unpack_rows(packed: NDArray[np.int32], bits: int, columns: int) -> NDArray[np.int8]:
    """Undo `pack_rows`: (out, words) int32 to (out, columns) int8.

    Raises ValueError if `packed` is not wide enough, or wider than `columns` needs.
    """
    if bits not in CONTAINER_BITS:
        raise ValueError(f"cannot unpack {bits} bits; containers have {CONTAINER_BITS}")
    if packed.shape[1] != -(-columns * bits // 32):
        raise ValueError(f"{packed.shape[1]} words do not hold {columns} integers of {bits} bits")
    q = np.empty((packed.shape[0], columns), np.int8)
    offset = np.uint8(1 << (bits - 1))
    step = max(1, _PIECE_BYTES // max(columns, 1))  # what a core's cache holds
    for start in range(0, len(q), step):
        octets = np.ascontiguousarray(packed[start : start + step], "<i4").view(np.uint8)
        codes = _SPREAD[bits](octets)[:, :columns]
        np.subtract(codes, offset, out=q[start : start + step].view(np.uint8))
    return q


def _spread_nibbles(octets: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A byte for each 4 bits, the lowest first; in words, which is faster than by strides."""
    words = octets.astype("<u2")
    words |= words << np.uint16(4)
    words &= np.uint16(0x0F0F)
    return words.view(np.uint8)


def _spread_pairs(octets: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A byte for each 2 bits, the lowest first."""
    words = octets.astype("<u4")
    words |= words << np.uint32(12)
    words &= np.uint32(0x000F000F)
    words |= words << np.uint32(6)
    words &= np.uint32(0x03030303)
    return words.view(np.uint8)


_SPREAD: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: _spread_pairs,
    4: _spread_nibbles,
    8: lambda octets: octets,
}
