"""How the checkpoint's tensors lie in the ONNX file.

A trained projection of the checkpoint, q (out, in), scale and perhaps zero-point (out, groups),
becomes two or three initializers in the layout that ONNX Runtime fuses into MatMulNBits (N = out,
K = in, g = group):

    NAME.weight              INT2, INT4 or INT8 [K, N]    q transposed
    NAME.weight_scale        FLOAT [K / g, N], or [N]     one row of scales a block; a channel: [N]
    NAME.weight_zero_point   type and shape: integers' and scales'; only where the grid has them

    or, for runtimes that fuse unsigned types only, UINT4 and UINT8: q and zero-points (0 where the
    grid has none), each plus half of the type's range, which leaves their difference as it is

    y = MatMul(x, DequantizeLinear(weight, weight_scale, weight_zero_point, axis=0, block_size=g))
        per channel: axis=1, no block_size

DequantizeLinear computes scale * (q - zero_point), which is what the grid means, and every such
product is exact in float32. A scale of two levels is stored as the product of both, which is exact
too. `STORAGES` is the table of integer types.

The range of a layer's input, if it was trained with a fixed one, is two scalars,

    NAME.input.scale         FLOAT
    NAME.input.zero_point    UINT4, UINT8 or UINT16 for QuantizeLinear, else FLOAT

A linear layer that stays floating is FLOAT [K, N]; everything else keeps its shape. FLOAT holds
every bfloat16 and float16 value. An embedding may be of a narrower type (`exporters.onnx.tables`),
or integers (`exporters.onnx.rows`). `KINDS` is the table of these forms: planning, writing and
verifying read it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.activations import activation_grid
from exporters.onnx.rounded_rows import grid_of, integers_of, scales_of, zero_points_of
from exporters.onnx.rows import code_shape, pack_rows
from lrqat.activations import find_activation_grid
from lrqat.checkpoint import Checkpoint
from lrqat.errors import CheckpointError, ExportRefusedError
from lrqat.grid import FloatScale, Grid

Shape = tuple[int, ...]
# Numbers that are read and converted at once: 16 MiB of float32.
_PIECE = 1 << 22
_SLAB = 64  # rows
_UNSIGNED = (ir.DataType.UINT4, ir.DataType.UINT8)
_LARGEST = {ir.DataType.FLOAT16: "65504", ir.DataType.BFLOAT16: "3.39e38"}


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


STORAGES = {
    "signed": (
        Storage(ir.DataType.INT2, -2, 1, opset=25, outputs=4),
        Storage(ir.DataType.INT4, -8, 7, opset=21),
        Storage(ir.DataType.INT8, -128, 127, opset=21),
    ),
    "unsigned": (
        Storage(ir.DataType.UINT4, -8, 7, opset=21),
        Storage(ir.DataType.UINT8, -128, 127, opset=21),
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
        integers: a key of `STORAGES`.
    """
    for storage in STORAGES[integers]:
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


@dataclass(frozen=True)
class Kind:
    """One form of initializer.

    Attributes:
        shape: shape in the file from the shape in the checkpoint and the grid.
        read: (checkpoint, name) -> its numbers as they lie in the file, some rows at a time, in a
            type that holds them.
        centred: whether they are integers around zero; an unsigned type holds them plus half of
            its range.
    """

    shape: Callable[[Shape, Grid | None], Shape]
    read: Callable[[Checkpoint, str], Iterator[NDArray[Any]]]
    centred: bool = False


def pieces(
    kind: str, checkpoint: Checkpoint, source: str, dtype: ir.DataType
) -> Iterator[NDArray[Any]]:
    """The numbers of a planned tensor in the order of the file, consecutive rows at a time.

    A table of a gigabyte is never whole in memory.

    Yields:
        C-contiguous arrays of the element type `dtype`.

    Raises:
        ExportRefusedError: a floating value that is too large for `dtype`.
        CheckpointError: the checkpoint's numbers are not valid.
    """
    middle = 1 << dtype.bitwidth - 1 if KINDS[kind].centred and dtype in _UNSIGNED else 0
    for values in KINDS[kind].read(checkpoint, source):
        if middle:
            values = values.view(np.uint8) + np.uint8(middle)
        with np.errstate(over="ignore"):
            found = values.astype(dtype.numpy(), order="C", copy=False)
        if dtype in _LARGEST and np.isinf(found).any() and not np.isinf(values).any():
            raise ExportRefusedError(
                f"{source} has values beyond the largest of {dtype.name.lower()}, "
                f"{_LARGEST[dtype]}; choose float32 for it"
            )
        yield found


def stored(kind: str, checkpoint: Checkpoint, source: str, dtype: ir.DataType) -> NDArray[Any]:
    """The same as one array; raises as `pieces` does."""
    found = list(pieces(kind, checkpoint, source, dtype))
    return found[0] if len(found) == 1 else np.concatenate(found)


def _slices(shape: Shape) -> list[slice]:
    """Rows of about `_PIECE` numbers, that make up the whole shape."""
    if len(shape) < 2:
        return [slice(None)]
    step = max(1, _PIECE // max(1, math.prod(shape[1:])))
    return [slice(start, start + step) for start in range(0, max(1, shape[0]), step)]


def _transposed(values: NDArray[Any]) -> NDArray[Any]:
    """The transpose of a matrix, C-contiguous.

    Slab by slab, which is up to ten times as fast as all at once: a column of it stays in the
    cache until the next one is read. And numpy is as slow at giving strided numbers another type.
    """
    rows, columns = values.shape
    found = np.empty((columns, rows), values.dtype)
    for start in range(0, rows, _SLAB):
        found[:, start : start + _SLAB] = values[start : start + _SLAB].T
    return found


def _read_integers(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[Any]]:
    q = integers_of(checkpoint, name).q
    return (_transposed(q[:, columns]) for columns in _slices(q.T.shape))


def _read_scales(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[Any]]:
    yield _by_group(scales_of(checkpoint, name), grid_of(checkpoint, name))


def _read_zero_points(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[Any]]:
    yield _by_group(zero_points_of(checkpoint, name), grid_of(checkpoint, name))


def _read_codes(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[Any]]:
    tensor = integers_of(checkpoint, name)
    return (pack_rows(tensor.q[rows], tensor.grid) for rows in _slices(tensor.q.shape))


def _read_row_scales(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[Any]]:
    yield scales_of(checkpoint, name)


def _read_row_zero_points(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[Any]]:
    yield zero_points_of(checkpoint, name)


def _by_group(part: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """(out, groups) as [groups, out], or [out] where there is one a row."""
    return part[:, 0] if grid.group_size is None else part.T


def _group_shape(shape: Shape, grid: Grid | None) -> Shape:
    assert grid is not None
    rows, columns = shape
    return (rows,) if grid.group_size is None else (grid.groups(columns), rows)


def _code_shape(shape: Shape, grid: Grid | None) -> Shape:
    assert grid is not None
    return code_shape(shape, grid)


def _row_shape(shape: Shape, grid: Grid | None) -> Shape:
    assert grid is not None
    return shape[0], grid.groups(shape[1])


def _transposed_shape(shape: Shape, grid: Grid | None) -> Shape:
    return shape[::-1]


def _read_float(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[Any]]:
    for rows in _slices(checkpoint.shape(name)):
        yield checkpoint.floating(name, rows).astype(np.float32)


def _read_linear(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[Any]]:
    values = checkpoint.floating(name)
    for columns in _slices(values.T.shape):
        yield _transposed(values[:, columns]).astype(np.float32)


def _read_input(part: str) -> Callable[[Checkpoint, str], Iterator[NDArray[Any]]]:
    """Reader of one number of the range that the input of a layer is rounded with."""

    def read(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[Any]]:
        value = checkpoint.floating(f"{name}.input_{part}")
        grid = find_activation_grid(str(activation_grid(checkpoint, name)))
        number = float(value.item()) if value.size == 1 else math.nan
        fits = 0 < number < math.inf if part == "scale" else number in range(grid.q_max + 1)
        if not fits:
            raise CheckpointError(
                f"{name}: the {part} of its input is {value}, which {grid.name} does not have; "
                "train again"
            )
        yield np.array(number, np.float32)

    return read


def _scalar_shape(shape: Shape, grid: Grid | None) -> Shape:
    return ()


KINDS: dict[str, Kind] = {
    "integers": Kind(_transposed_shape, _read_integers, centred=True),
    "scales": Kind(_group_shape, _read_scales),
    "zero_points": Kind(_group_shape, _read_zero_points, centred=True),
    "codes": Kind(_code_shape, _read_codes),
    "row_scales": Kind(_row_shape, _read_row_scales),
    "row_zero_points": Kind(_row_shape, _read_row_zero_points),
    "input_scale": Kind(_scalar_shape, _read_input("scale")),
    "input_zero_point": Kind(_scalar_shape, _read_input("zero_point")),
    "linear": Kind(_transposed_shape, _read_linear),
    "float": Kind(lambda shape, grid: shape, _read_float),
}
