"""The numbers of a GGUF block type as integers and scales of the grid of its name.

Where a scale is zero the weights are zero (or the minimum), whatever the integers: a grid's scales
are never zero, so the integers become zero and the scale the smallest that there is. Weights stay
what they are; the bytes of such a block do not.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.gguf.blocks import IntegerBlock
from exporters.gguf.layout.fields import Fields
from lrqat.checkpoint.reader import QuantizedTensor
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.grids.grid import GRIDS, Grid, TwoLevelScale

_LEAST = np.float32(2.0**-24)  # of float16
# Types whose levels are those of the grid with their signs turned: -1 to 2, and -2 to 1.
_TURNED = ("q2_0",)
# What holds the integers that a file may have and the grid of the type's name does not.
_WIDER = {"q8_0": "int8-g32"}


def grid_of(type_name: str) -> Grid | None:
    """The grid of a type, which has its name; None: there is none."""
    return GRIDS.get(type_name.lower())


def to_grid(name: str, block: IntegerBlock, fields: Fields) -> QuantizedTensor | None:
    """Integers and scales of rows, or None if the grid does not hold them."""
    grid = GRIDS[block.NAME]
    made = block.factors(fields)
    q = np.array(made.levels, np.int8)
    scale, minimum = made.scale.astype(np.float32), _floats(made.minimum)
    parts: dict[str, Any] = {}
    if isinstance(grid.scale, TwoLevelScale):
        top, sub = _floats(fields.numbers["d"]), np.array(fields.numbers["scales"], np.int8)
        assert top is not None
        top = np.where(top == 0, _LEAST, top)
        sub[(sub == 0) | (scale == 0)] = 1
        parts |= {"super_scale": top, "sub_scale": sub}
        new = top.repeat(sub.shape[1] // top.shape[1], 1) * sub
    else:
        new = np.where(scale == 0, np.float32(1.0), scale)
    if minimum is not None and isinstance(grid.minimum, TwoLevelScale):
        mins = np.array(fields.numbers["mins"], np.int8)
        parts |= {"super_minimum": _floats(fields.numbers["dmin"]), "sub_minimum": mins}
    q.reshape(*scale.shape, -1)[scale == 0] = 0
    if not grid.signed_scale and (new < 0).any():
        if minimum is not None or q.min(initial=0) == -128:
            return None
        q.reshape(*new.shape, -1)[new < 0] *= -1
        new = np.abs(new)
    if block.NAME in _TURNED:
        q, new = -q, -new
    if q.min(initial=0) < grid.q_min and block.NAME in _WIDER:
        grid = GRIDS[_WIDER[block.NAME]]
    if not _holds(grid, q, new, minimum):
        return None
    return QuantizedTensor(name, q, StoredScales(new, minimum=minimum, **parts), grid)


def _holds(
    grid: Grid, q: NDArray[np.int8], scale: NDArray[np.float32], minimum: NDArray[Any] | None
) -> bool:
    finite = np.isfinite(scale).all() and (minimum is None or np.isfinite(minimum).all())
    inside = grid.q_min <= q.min(initial=0) and q.max(initial=0) <= grid.q_max
    return bool(finite and inside and (grid.levels is None or np.isin(q, grid.levels).all()))


def _floats(part: NDArray[Any] | None) -> NDArray[np.float32] | None:
    return None if part is None else part.astype(np.float32)
