"""The integers and scales of a weight that is stored as integers.

They are those that were trained, as the checkpoint has them. Only an embedding or a head that was
not trained on a grid has others, if the user asked for int8: its values are rounded, `round_rows`.
Every row gets the scale that its largest value needs, and integers from -127 to 127. That loses
something, so that it is never done by default.
"""

import numpy as np
from numpy.typing import NDArray

from lrqat.checkpoint.reader import Checkpoint, QuantizedTensor
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.errors import CheckpointError
from lrqat.grids.grid import FloatScale, Grid

ROUNDED = Grid("int8 rows", 8, -127, 127, None, "one float32 scale per row", FloatScale("float32"))
_CHUNK_ROWS = 4096  # at a time, so that wide copies stay small


def grid_of(checkpoint: Checkpoint, module: str) -> Grid:
    """The grid of the integers: the one that `module` was trained on, else that of rounded rows."""
    return checkpoint.grid(module) if module in checkpoint.quantized_names else ROUNDED


def shape_of(checkpoint: Checkpoint, module: str) -> tuple[int, ...]:
    """Their shape (out, in)."""
    trained = module in checkpoint.quantized_names
    return checkpoint.shape(module if trained else f"{module}.weight")


def read_integers(checkpoint: Checkpoint, module: str) -> QuantizedTensor:
    """Integers and scales of the weight of `module`.

    Raises:
        CheckpointError: the checkpoint's numbers are not valid.
    """
    if module in checkpoint.quantized_names:
        return checkpoint.quantized(module)
    return round_rows(module, checkpoint.floating(f"{module}.weight"))


def read_scales(checkpoint: Checkpoint, module: str) -> NDArray[np.float32]:
    """The scales alone, (out, groups); trained integers are not unpacked for them."""
    if module in checkpoint.quantized_names:
        return checkpoint.scales(module).scale
    return read_integers(checkpoint, module).scale


def read_zero_points(checkpoint: Checkpoint, module: str) -> NDArray[np.int8]:
    """The zero-points alone, (out, groups); zeros where the grid has none."""
    if module not in checkpoint.quantized_names:
        return np.zeros((shape_of(checkpoint, module)[0], 1), np.int8)
    scales = checkpoint.scales(module)
    return np.zeros(scales.scale.shape, np.int8) if scales.zero_point is None else scales.zero_point


def round_rows(module: str, values: NDArray[np.floating]) -> QuantizedTensor:
    """The nearest integers of `values` (rows, columns), with one scale per row.

    Raises:
        CheckpointError: a value that is not finite.
    """
    q = np.empty(values.shape, np.int8)
    scale = np.empty((len(values), 1), np.float32)
    for start in range(0, len(values), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        wide = values[part].astype(np.float32)
        largest = np.abs(wide).max(axis=1, keepdims=True)
        if not np.isfinite(largest).all():
            raise CheckpointError(f"{module}.weight holds NaN or infinity; train again")
        # Rows of zeros, and of numbers too small to divide by, become zeros.
        scale[part] = np.maximum(largest / np.float32(127), np.finfo(np.float32).tiny)
        q[part] = np.rint(wide / scale[part]).clip(ROUNDED.q_min, ROUNDED.q_max)
    return QuantizedTensor(module, q, StoredScales(scale), ROUNDED)
