"""Integers as rows, for tables that are looked up: what Gather can take a row of.

Gather knows no integers of fewer than 8 bits, so several share a byte, each from another part of
the row (K columns, b bits):

    NAME.weight              8 bits: INT8 [V, K]    q
                             2, 4:   UINT8 [V, K * b / 8]    q + 2^(b-1); the first K * b / 8
                                     columns are in the lowest bits, the next in the bits above
    NAME.weight_scale        FLOAT [V, groups]
    NAME.weight_zero_point   INT8 [V, groups]; only where the grid has them

    row = scale * (q - zero_point)
"""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lrqat.grids.grid import Grid

_WIDTHS = (2, 4, 8)


def code_bits(grid: Grid, columns: int) -> int:
    """Bits that an integer of `grid` takes in a row of `columns`: 2, 4 or 8."""
    return next(
        bits
        for bits in _WIDTHS
        if -(1 << bits - 1) <= grid.q_min and grid.q_max < 1 << bits - 1 and columns * bits % 8 == 0
    )


def code_type(grid: Grid, columns: int) -> ir.DataType:
    """The element type of the codes."""
    return ir.DataType.INT8 if code_bits(grid, columns) == 8 else ir.DataType.UINT8


def code_shape(shape: tuple[int, ...], grid: Grid) -> tuple[int, ...]:
    """The shape of the codes of a table (V, K)."""
    rows, columns = shape
    return rows, columns * code_bits(grid, columns) // 8


def pack_rows(q: NDArray[np.int8], grid: Grid) -> NDArray[Any]:
    """Codes of integers (V, K), of the shape `code_shape` and the type `code_type`."""
    bits = code_bits(grid, q.shape[1])
    if bits == 8:
        return q
    codes = (q + np.int8(1 << bits - 1)).view(np.uint8)
    parts = np.split(codes, 8 // bits, axis=1)
    packed = parts[0].copy()
    for i, part in enumerate(parts[1:], 1):
        packed |= part << np.uint8(i * bits)
    return packed
