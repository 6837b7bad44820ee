"""Numbers of unquantized tensors, as every exporter reads them: finite, and exact in float32."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrqat.errors import CheckpointError

_FLOATS = ("float64", "float32", "float16", "bfloat16")


def as_float32(name: str, stored: NDArray[Any]) -> NDArray[np.float32]:
    """`stored` as float32; no copy if it is.

    Args:
        name: of the tensor, for the message.
        stored: its values, or some of its rows.

    Raises:
        CheckpointError: NaN or infinity, a type that is not floating, or a float64 that float32
            rounds.
    """
    if stored.dtype.name not in _FLOATS:
        raise CheckpointError(f"{name} is {stored.dtype}; expected a float type")
    with np.errstate(over="ignore"):
        values = stored.astype(np.float32, copy=False)
    if not np.isfinite(stored).all():
        raise CheckpointError(f"{name} holds NaN or infinite values; train again")
    if stored.dtype.itemsize > values.itemsize and not np.array_equal(values, stored):
        raise CheckpointError(
            f"{name} holds float64 values that float32 rounds, and no export has float64; round "
            "the model to float32 before training"
        )
    return values
