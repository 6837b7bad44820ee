"""Which integer type of ONNX a grid's integers are stored in, and in which layout.

A weight that is multiplied with, q (out, in), lies [K, N] (K = in, N = out), in blocks of inputs
that share a scale. ONNX Runtime makes quantised products of blocks. For its own kernels it cuts
rows with one scale into blocks by itself; for other devices it does not, and takes unsigned types
only. So where those are asked for, such rows are in blocks in the file, each with the scale of the
row.

An embedding whose rows are looked up lies [V, K]. Gather takes rows of whole bytes, so that several
narrower integers share one, each from another part of the row (b bits):

    8 bits    INT8 [V, K]             q
    2, 4      UINT8 [V, K * b / 8]    q + 2^(b-1); the first K * b / 8 columns are in the lowest
                                      bits, the next in the bits above
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lrqat.grids.grid import FloatScale, Grid
from lrqat.grids.packing import containers

UNSIGNED = (ir.DataType.UINT4, ir.DataType.UINT8)
_LEAST_BLOCK, _MOST_BLOCK = 16, 256  # of MatMulNBits
# ONNX Runtime (1.26 to 1.32) packs INT2 again when it fuses, and wrongly if N is no multiple of
# this; the products are garbage then.
_OUTPUTS_OF_INT2 = 4


def trained_block(grid: Grid, columns: int) -> int | None:
    """Inputs that share a scale, as trained; None: one scale per row of `columns`."""
    return grid.group_size


def fusable_block(grid: Grid, columns: int) -> int | None:
    """The same, but a row with one scale is in blocks of up to 256, where `columns` allow it."""
    if grid.group_size is not None:
        return grid.group_size
    largest = min(columns & -columns, _MOST_BLOCK)  # the power of two in it
    return largest if largest >= _LEAST_BLOCK else None


@dataclass(frozen=True)
class IntegerForm:
    """What `--integer-type` chooses: how weights that are multiplied with lie in the file.

    Attributes:
        types: the element types, the narrowest first. An unsigned one holds q plus half of its
            range.
        block_of: (grid, K) -> inputs that share a scale, or None: one scale per row.
        all_have_zero_points: whether every weight has them, or just those whose grid has them.
    """

    types: tuple[ir.DataType, ...]
    block_of: Callable[[Grid, int], int | None]
    all_have_zero_points: bool

    def has_zero_points(self, grid: Grid) -> bool:
        """Whether a weight on `grid` has them in the file."""
        return grid.zero_point or self.all_have_zero_points


INTEGER_FORMS = {
    "signed": IntegerForm(
        types=(ir.DataType.INT2, ir.DataType.INT4, ir.DataType.INT8),
        block_of=trained_block,
        all_have_zero_points=False,
    ),
    "unsigned": IntegerForm(types=UNSIGNED, block_of=fusable_block, all_have_zero_points=True),
}


def product_type(
    grid: Grid, outputs: int, *, two_bits: bool, integers: str = "signed"
) -> ir.DataType | None:
    """The narrowest type for integers of `grid` in a product, or None where no type holds them.

    Args:
        grid: without minima.
        outputs: N, rows of the weight.
        two_bits: whether INT2 may be used.
        integers: a key of `INTEGER_FORMS`.
    """
    widths = containers(grid)
    for dtype in INTEGER_FORMS[integers].types:
        allowed = dtype != ir.DataType.INT2 or (two_bits and outputs % _OUTPUTS_OF_INT2 == 0)
        if allowed and dtype.bitwidth in widths:
            return dtype
    return None


def refuses_grid(grid: Grid, float_type: ir.DataType) -> str | None:
    """Why no DequantizeLinear computes the weights of `grid`, or None if one does.

    The reason names a grid whose weights it does compute.
    """
    size = "channel" if grid.group_size is None else f"g{grid.group_size}"
    if grid.minimum is not None:
        return (
            f"{grid.name} subtracts a floating minimum, and DequantizeLinear only an integer "
            f"zero-point; train on int{grid.bits}-asym-{size}, which has one"
        )
    if float_type == ir.DataType.FLOAT16 and grid.scale != FloatScale("float16"):
        return (
            f"the scales of {grid.name} are not float16 numbers; leave out --float-type float16, "
            f"or train on int{grid.bits}-{size}, whose are"
        )
    if product_type(grid, 1, two_bits=False) is None:  # a grid wider than any there is today
        return f"no integer type of ONNX holds {grid.q_min} to {grid.q_max}; train on int8-{size}"
    return None


def code_bits(grid: Grid, columns: int) -> int:
    """Bits that an integer of `grid` takes in a row of `columns` that is looked up: 2, 4 or 8."""
    return next(bits for bits in containers(grid) if columns * bits % 8 == 0)


def code_type(grid: Grid, columns: int) -> ir.DataType:
    """The element type of such rows."""
    return ir.DataType.INT8 if code_bits(grid, columns) == 8 else ir.DataType.UINT8


def code_shape(shape: tuple[int, ...], grid: Grid) -> tuple[int, ...]:
    """The shape of the rows of an embedding (V, K)."""
    rows, columns = shape
    return rows, columns * code_bits(grid, columns) // 8


def pack_rows(q: NDArray[np.int8], grid: Grid) -> NDArray[Any]:
    """Integers (V, K) as rows, of the shape `code_shape` and the type `code_type`."""
    bits = code_bits(grid, q.shape[1])
    if bits == 8:
        return q
    codes = (q + np.int8(1 << bits - 1)).view(np.uint8)
    parts = np.split(codes, 8 // bits, axis=1)
    packed = parts[0].copy()
    for i, part in enumerate(parts[1:], 1):
        packed |= part << np.uint8(i * bits)
    return packed
