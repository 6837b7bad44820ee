"""What each weight adds to the KL on each grid, before anything is trained: an estimate.

The errors of rounding are those of the start scales, on some rows: the rows that matter most, and
some of the others that stand for all of them. Their curvature (`lrqat.budget.curvature`) turns them
into nats a token.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lrqat.budget.curvature import Curvature
from lrqat.grids.grid import Grid
from lrqat.grids.quantize import dequantize, integers, to_latent
from lrqat.init.range_init import find_scales
from lrqat.init.scale_search import search
from lrqat.init.starts import RangeInit

_ROWS = 32  # of a weight that are rounded; half of them those that matter most
_START = RangeInit("", partial(search, p=2.0, candidates=25), weighted=True)


def losses(weight: Tensor, curvature: Curvature, grids: Sequence[Grid]) -> dict[str, float]:
    """KL in nats a token that rounding `weight` to each of `grids` costs.

    Args:
        weight: (out, in).
        curvature: its own.
        grids: those that its rows fit.
    """
    rows, share = _sample(curvature.rows)
    chosen = weight.detach()[rows].float()
    columns = curvature.columns / curvature.columns.sum().clamp_min(1e-30)
    found = {}
    for grid in grids:
        error = (rounded(chosen, grid, curvature.columns) - chosen).square()
        found[grid.name] = float(0.5 * (share * (error @ columns)).sum())
    return found


def rounded(weight: Tensor, grid: Grid, importance: Tensor) -> Tensor:
    """`weight`, float32 (out, in), rounded to `grid` with start scales."""
    scales = find_scales(weight, grid, _START, importance)
    return dequantize(integers(to_latent(weight, scales), grid), scales)


def _sample(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Some rows, and how much each counts: (n,) indices, and float32 (n,) that sum to all."""
    order = rows.argsort(descending=True, stable=True)
    top, rest = order[: _ROWS // 2], order[_ROWS // 2 :]
    if len(rest) <= _ROWS - len(top):
        return order, rows[order]
    spread = torch.linspace(0, len(rest) - 1, _ROWS - len(top), device=rows.device).long()
    others = rest[spread]
    scale = rows[rest].sum() / rows[others].sum().clamp_min(1e-30)
    return torch.cat([top, others]), torch.cat([rows[top], rows[others] * scale])
