"""How the checkpoint's tensors lie in the ONNX file.

A trained projection of the checkpoint, q (out, in), scale and perhaps zero-point (out, groups),
becomes two or three initializers in the layout that ONNX Runtime fuses into MatMulNBits (N = out,
K = in, g = group):

    NAME.weight              INT2, INT4 or INT8 [K, N]    q transposed
    NAME.weight_scale        FLOAT [K / g, N], or [N]     per block, or per channel
    NAME.weight_zero_point   type and shape: integers' and scales'; only where the grid has them

    or, for runtimes that fuse unsigned types only, UINT4 and UINT8: q and zero-points (0 where the
    grid has none), each plus half of the type's range, which leaves their difference as it is; and
    everything in blocks (`exporters.onnx.weights.storage`, which has the types)

    y = MatMul(x, DequantizeLinear(weight, weight_scale, weight_zero_point, axis=0, block_size=g))
        per channel: axis=1, no block_size

DequantizeLinear computes scale * (q - zero_point), which is what the grid means, and every such
product is exact in float32. A scale of two levels is stored as the product of both, which is exact
too.

The range of a layer's input, if it was trained with a fixed one, is two scalars,

    NAME.input.scale         FLOAT
    NAME.input.zero_point    UINT4, UINT8 or UINT16 for QuantizeLinear, else FLOAT

The weight of an unquantized linear layer is FLOAT [K, N]; everything else keeps its shape. FLOAT
holds every bfloat16 and float16 value. An embedding may be of a narrower type
(`exporters.onnx.weights.embedding_and_head`), or integers [V, K], several to a byte
(`exporters.onnx.weights.storage`), with scales and zero-points [V, groups].
`FORMS` is the table of these forms: planning, writing and verifying read it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.floating import as_float32
from exporters.onnx.weights.integers import (
    grid_of,
    read_integers,
    read_scales,
    read_zero_points,
    shape_of,
)
from exporters.onnx.weights.storage import INTEGER_FORMS, UNSIGNED, code_shape, pack_rows
from exporters.planning import activation_grid
from lrqat.activations.table import find_activation_grid
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import CheckpointError, ExportRefusedError
from lrqat.grids.grid import Grid

Shape = tuple[int, ...]
# Numbers that are read and converted at once: 16 MiB of float32.
_PIECE = 1 << 22
_SLAB = 64  # rows
_LARGEST = {ir.DataType.FLOAT16: "65504", ir.DataType.BFLOAT16: "3.39e38"}


@dataclass(frozen=True)
class Form:
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
    form: str, checkpoint: Checkpoint, source: str, dtype: ir.DataType
) -> Iterator[NDArray[Any]]:
    """The numbers of a planned tensor in the order of the file, consecutive rows at a time.

    An embedding of a gigabyte is never whole in memory.

    Yields:
        C-contiguous arrays of the element type `dtype`.

    Raises:
        ExportRefusedError: an unquantized value that is too large for `dtype`.
        CheckpointError: the checkpoint's numbers are not valid.
    """
    middle = 1 << dtype.bitwidth - 1 if FORMS[form].centred and dtype in UNSIGNED else 0
    for values in FORMS[form].read(checkpoint, source):
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


def stored(form: str, checkpoint: Checkpoint, source: str, dtype: ir.DataType) -> NDArray[Any]:
    """The same as one array; raises as `pieces` does."""
    found = list(pieces(form, checkpoint, source, dtype))
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
    q = read_integers(checkpoint, name).q
    return (_transposed(q[:, columns]) for columns in _slices(q.T.shape))


def _read_codes(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[Any]]:
    tensor = read_integers(checkpoint, name)
    return (pack_rows(tensor.q[rows], tensor.grid) for rows in _slices(tensor.q.shape))


def _read_row_scales(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[Any]]:
    yield read_scales(checkpoint, name)


def _read_row_zero_points(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[Any]]:
    yield read_zero_points(checkpoint, name)


def _scales(
    part: Callable[[Checkpoint, str], NDArray[Any]],
    block_of: Callable[[Grid, int], int | None],
    *,
    centred: bool = False,
) -> Form:
    """Scales or zero-points, `part` (out, groups): [K / block, N], or [N] without blocks."""

    def shape_of_part(shape: Shape, grid: Grid | None) -> Shape:
        assert grid is not None
        rows, columns = shape
        block = block_of(grid, columns)
        return (rows,) if block is None else (columns // block, rows)

    def read(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[Any]]:
        values, columns = part(checkpoint, name), shape_of(checkpoint, name)[1]
        block = block_of(grid_of(checkpoint, name), columns)
        if block is None:
            yield values[:, 0]
        else:  # what a whole row shares, for each of its blocks
            yield np.repeat(values.T, columns // block // values.shape[1], axis=0)

    return Form(shape_of_part, read, centred)


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
        yield as_float32(name, checkpoint.floating(name, rows))


def _read_linear(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[Any]]:
    stored = checkpoint.floating(name)  # whole, but in the type that it is stored in
    for columns in _slices(stored.T.shape):
        yield as_float32(name, _transposed(stored[:, columns]))


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


FORMS: dict[str, Form] = {
    "integers": Form(_transposed_shape, _read_integers, centred=True),
    **{
        f"{name}_scales": _scales(read_scales, stored.block_of)
        for name, stored in INTEGER_FORMS.items()
    },
    **{
        f"{name}_zero_points": _scales(read_zero_points, stored.block_of, centred=True)
        for name, stored in INTEGER_FORMS.items()
    },
    "codes": Form(_code_shape, _read_codes),
    "row_scales": Form(_row_shape, _read_row_scales),
    "row_zero_points": Form(_row_shape, _read_row_zero_points),
    "input_scale": Form(_scalar_shape, _read_input("scale")),
    "input_zero_point": Form(_scalar_shape, _read_input("zero_point")),
    "linear": Form(_transposed_shape, _read_linear),
    "float": Form(lambda shape, grid: shape, _read_float),
}
