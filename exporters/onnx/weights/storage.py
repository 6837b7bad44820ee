"""Which integer type of ONNX a grid goes into, and in which blocks.

ONNX Runtime makes quantised products of weights in blocks. For its own kernels it cuts rows with
one scale into blocks by itself; for other devices it does not, and takes unsigned types only. So
where those are asked for, such rows are in blocks in the file, each with the scale of the row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from lrqat.grids.grid import FloatScale, Grid

UNSIGNED = (ir.DataType.UINT4, ir.DataType.UINT8)
_LEAST_BLOCK, _MOST_BLOCK = 16, 256  # of MatMulNBits


@dataclass(frozen=True)
class Storage:
    """An integer type of ONNX.

    Attributes:
        dtype: ONNX element type.
        least: the smallest integer of a grid that it holds.
        most: the largest.
        opset: the first operator set whose DequantizeLinear takes it.
        outputs: what N must be a multiple of. ONNX Runtime (1.26 to 1.32) packs INT2 again when it
            fuses, and wrongly if N is no multiple of 4; the products are garbage then.
    """

    dtype: ir.DataType
    least: int
    most: int
    opset: int
    outputs: int = 1

    def holds(self, grid: Grid) -> bool:
        """Whether all integers (and so all zero-points) of `grid` are among its own."""
        return self.least <= grid.q_min and grid.q_max <= self.most


def trained_block(grid: Grid, columns: int) -> int | None:
    """Inputs that share a scale, as trained; None: one scale a row of `columns`."""
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
        storages: the types, the narrowest first.
        block_of: (grid, K) -> inputs that share a scale, or None: one scale a row.
        all_have_zero_points: whether every weight has them, or just those whose grid has them.
    """

    storages: tuple[Storage, ...]
    block_of: Callable[[Grid, int], int | None]
    all_have_zero_points: bool

    def has_zero_points(self, grid: Grid) -> bool:
        """Whether a weight on `grid` has them in the file."""
        return grid.zero_point or self.all_have_zero_points


INTEGER_FORMS = {
    "signed": IntegerForm(
        storages=(
            Storage(ir.DataType.INT2, -2, 1, opset=25, outputs=4),
            Storage(ir.DataType.INT4, -8, 7, opset=21),
            Storage(ir.DataType.INT8, -128, 127, opset=21),
        ),
        block_of=trained_block,
        all_have_zero_points=False,
    ),
    "unsigned": IntegerForm(
        storages=(
            Storage(ir.DataType.UINT4, -8, 7, opset=21),
            Storage(ir.DataType.UINT8, -128, 127, opset=21),
        ),
        block_of=fusable_block,
        all_have_zero_points=True,
    ),
}


def storage_of(
    grid: Grid, outputs: int, *, two_bits: bool, integers: str = "signed"
) -> Storage | None:
    """The narrowest type for integers of `grid`, or None where no type holds them.

    Args:
        grid: without minima.
        outputs: N, rows of the weight.
        two_bits: whether INT2 may be used.
        integers: a key of `INTEGER_FORMS`.
    """
    for storage in INTEGER_FORMS[integers].storages:
        allowed = two_bits or storage.dtype != ir.DataType.INT2
        if allowed and storage.holds(grid) and outputs % storage.outputs == 0:
            return storage
    return None


def refuses_grid(grid: Grid, float_type: ir.DataType) -> str | None:
    """Why DequantizeLinear cannot say what `grid` means, with what it can say; None if it can."""
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
    if storage_of(grid, 1, two_bits=False) is None:  # a grid wider than any there is today
        return f"no integer type of ONNX holds {grid.q_min} to {grid.q_max}; train on int8-{size}"
    return None
