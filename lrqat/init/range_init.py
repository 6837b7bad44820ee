"""The scales (and minima, and zero-points) that training starts from.

    minmax       covers every weight of the group
    lp           for each group, the candidate with the least sum |W - Wq|^p (the LR-QAT paper's
                 search: p = 4, 100 candidates)
    l2           the same with p = 2
    importance   l2 with each weight's error multiplied by the mean square of its input channel:
                 what llama.cpp calls an importance matrix

A start is a function from a weight to its scales, and a row of `RANGE_INITS`.
"""

import torch
from torch import Tensor

from lrqat.grids.grid import Grid
from lrqat.grids.quantize import Scales
from lrqat.init.starts import RANGE_INITS, RangeInit

_CHUNK_WEIGHTS = 1 << 22  # 16 MB in float32: the search holds three of these


def find_scales(
    weight: Tensor, grid: Grid, how: str | RangeInit, importance: Tensor | None = None
) -> Scales:
    """Start scales for `weight`.

    Args:
        weight: (out, in), any floating dtype.
        grid: grid to fit.
        how: a name in `RANGE_INITS`, or an entry of one's own.
        importance: (in,) mean square of each input channel, where `how` wants it.

    Returns:
        float32 (out, groups) each, as stored: rounding them again changes nothing.
    """
    start = RANGE_INITS[how] if isinstance(how, str) else how
    wanted = importance if start.weighted else None
    rows = max(1, _CHUNK_WEIGHTS // weight.shape[1])
    chunks = [start.find(chunk.float(), grid, wanted) for chunk in weight.detach().split(rows)]
    columns = zip(*(chunk.parts() for chunk in chunks), strict=True)
    # What all rows share is known only now.
    return Scales.of(map(_concatenated, columns)).stored(grid, weight.shape[1])


def _concatenated(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None
