"""How the checkpoint's tensors lie in the ONNX file.

A trained projection of the checkpoint, q (out, in) and scale (out, groups), becomes two
initializers in the layout that ONNX Runtime fuses into MatMulNBits (N = out, K = in, g = group):

    NAME.weight        INT4 or INT8 [K, N]            q transposed
    NAME.weight_scale  FLOAT [K / g, N], or [N]       one row of scales a block; per channel: [N]

    y = MatMul(x, DequantizeLinear(weight, weight_scale, axis=0, block_size=g))
        per channel: DequantizeLinear(weight, weight_scale, axis=1)

A linear layer that stays floating is FLOAT [K, N]; everything else keeps its shape, as FLOAT, which
holds every bfloat16 and float16 value. INT4 is stored two a byte, the lower nibble first, in row
order (ONNX IR, `TensorProto.INT4`).

`KINDS` is the table of these forms: planning, writing and verifying read it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lrqat.checkpoint import Checkpoint
from lrqat.grid import Grid


@dataclass(frozen=True)
class Kind:
    """One form of initializer.

    Attributes:
        dtype: element type for a grid (None for a floating tensor).
        shape: shape in the file from the shape in the checkpoint and the grid.
        read: (checkpoint, name) -> the array as it lies in the file.
    """

    dtype: Callable[[Grid | None], ir.DataType]
    shape: Callable[[tuple[int, ...], Grid | None], tuple[int, ...]]
    read: Callable[[Checkpoint, str], NDArray[Any]]


def integer_type(grid: Grid | None) -> ir.DataType:
    """INT4 or INT8, the narrower that holds the grid."""
    assert grid is not None
    return ir.DataType.INT4 if grid.q_min >= -8 and grid.q_max <= 7 else ir.DataType.INT8


def _read_integers(checkpoint: Checkpoint, name: str) -> NDArray[Any]:
    tensor = checkpoint.quantized(name)
    transposed = np.ascontiguousarray(tensor.q.T)
    narrow = integer_type(tensor.grid) == ir.DataType.INT4
    return transposed.astype(ml_dtypes.int4) if narrow else transposed


def _read_scales(checkpoint: Checkpoint, name: str) -> NDArray[Any]:
    tensor = checkpoint.quantized(name)
    by_block = tensor.grid.group_size is not None
    return np.ascontiguousarray(tensor.scale.T if by_block else tensor.scale[:, 0])


def _scale_shape(shape: tuple[int, ...], grid: Grid | None) -> tuple[int, ...]:
    assert grid is not None
    rows, columns = shape
    return (rows,) if grid.group_size is None else (grid.groups(columns), rows)


def _always_float(grid: Grid | None) -> ir.DataType:
    return ir.DataType.FLOAT


def _transposed_shape(shape: tuple[int, ...], grid: Grid | None) -> tuple[int, ...]:
    return shape[::-1]


KINDS: dict[str, Kind] = {
    "integers": Kind(integer_type, _transposed_shape, _read_integers),
    "scales": Kind(_always_float, _scale_shape, _read_scales),
    "linear": Kind(
        _always_float,
        _transposed_shape,
        lambda checkpoint, name: np.ascontiguousarray(_float32(checkpoint, name).T),
    ),
    "float": Kind(
        _always_float,
        lambda shape, grid: shape,
        lambda checkpoint, name: _float32(checkpoint, name),
    ),
}


def _float32(checkpoint: Checkpoint, name: str) -> NDArray[np.float32]:
    return checkpoint.floating(name).astype(np.float32)
