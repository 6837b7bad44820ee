"""The scales (and minima, and zero-points) that training starts from.

    minmax       covers every weight of the group
    lp           for each group, the candidate with the least sum |W - Wq|^p (the LR-QAT paper's
                 search: p = 4, 100 candidates)
    l2           the same with p = 2
    importance   l2 with each weight's error multiplied by the mean square of its input channel:
                 what llama.cpp calls an importance matrix

A start is a function from a weight to its scales, and a row of `RANGE_INITS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lrqat.grids.grid import Grid
from lrqat.grids.quantize import Scales
from lrqat.init.scale_search import cover, search

_CHUNK_WEIGHTS = 1 << 22  # 16 MB in float32: the search holds three of these


@dataclass(frozen=True)
class RangeInit:
    """A start of the scales.

    Attributes:
        summary: one line for `--help` and the documentation.
        find: from rows of a weight, float32 (rows, in), their grid, and the importance (in,) of
            the input channels or None, to the scales, float32 (rows, groups) each, as stored.
        weighted: whether it wants the importance, so that it is measured or read.
    """

    summary: str
    find: Callable[[Tensor, Grid, Tensor | None], Scales]
    weighted: bool = False


RANGE_INITS: dict[str, RangeInit] = {
    "lp": RangeInit("least L4 error of the weights, by group", partial(search, p=4.0)),
    "l2": RangeInit("least squared error of the weights, by group", partial(search, p=2.0)),
    "importance": RangeInit(
        "least squared error, weighted by the inputs", partial(search, p=2.0), weighted=True
    ),
    "minmax": RangeInit("the range of each group", cover),
}


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
