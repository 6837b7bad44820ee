"""The scales that training starts from: min-max, or the L_p-norm search of the LR-QAT paper.

Both work group by group. Min-max covers every weight of the group; the search tries fractions of
the min-max scale and keeps, for each group, the one with the least sum |W - s q|^p, trading the few
largest weights for resolution on the rest. p = 4 and 100 candidates are what the published
experiments of LR-QAT run with (Bondarenko et al., 2024).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lrqat.grid import Grid
from lrqat.quantize import integers, stored_scale

CANDIDATES = 100  # the paper's grid search
_CHUNK_WEIGHTS = 1 << 22  # 16 MB in float32: the search holds three of these


def min_max(weight: Tensor, grid: Grid, p: float = 4.0) -> Tensor:
    """The smallest scale that covers every weight. `p` is not used.

    Where scales may be negative it is the signed-max rule of llama.cpp's Q4_0: the weight of
    largest magnitude is exactly q_min, and one of nearly that size on the other side is clipped.

    Args:
        weight: (out, in), any floating dtype.
        grid: grid to cover.
        p: ignored, so that every entry of `RANGE_INITS` is called alike.

    Returns:
        float32 (out, groups), rounded as stored.
    """
    del p
    return stored_scale(_covering_scale(_grouped(weight, grid), grid), grid)


def lp_search(weight: Tensor, grid: Grid, p: float = 4.0) -> Tensor:
    """For each group, the scale among `CANDIDATES` fractions of min-max with the least L_p error.

    Where scales may be negative both signs are tried, since the full range has one level more on
    one side.

    Args:
        weight: (out, in), any floating dtype.
        grid: grid to fit.
        p: exponent of the error.

    Returns:
        float32 (out, groups), rounded as stored.
    """
    grouped = _grouped(weight, grid)
    rows = max(1, _CHUNK_WEIGHTS // grouped[0].numel())
    return torch.cat([_search(chunk, grid, p) for chunk in grouped.split(rows)])


RANGE_INITS: dict[str, Callable[[Tensor, Grid, float], Tensor]] = {
    "lp": lp_search,
    "minmax": min_max,
}


def _grouped(weight: Tensor, grid: Grid) -> Tensor:
    """View (out, in) as float32 (out, groups, group_size)."""
    rows, columns = weight.shape
    return weight.detach().float().reshape(rows, grid.groups(columns), -1)


def _covering_scale(grouped: Tensor, grid: Grid) -> Tensor:
    """Scales (out, groups) that cover groups (out, groups, size), see `min_max`."""
    low, high = grouped.amin(-1), grouped.amax(-1)
    if not grid.signed_scale:
        return torch.maximum(high / grid.q_max, low / grid.q_min)
    # Signed-max rule: the weight of largest magnitude gets the extra level, q_min.
    return torch.where(high > -low, high, low) / grid.q_min


def _candidates(grouped: Tensor, grid: Grid) -> Iterator[Tensor]:
    """Scales (out, groups) to try, from the widest range to the narrowest."""
    covering = _covering_scale(grouped, grid)
    for step in range(CANDIDATES, 0, -1):
        scale = covering * (step / CANDIDATES)
        yield stored_scale(scale, grid)
        if grid.signed_scale:
            yield stored_scale(scale * (grid.q_min / grid.q_max), grid)


def _search(grouped: Tensor, grid: Grid, p: float) -> Tensor:
    best_error = torch.full(grouped.shape[:2], torch.inf, device=grouped.device)
    best = torch.zeros_like(best_error)
    for scale in _candidates(grouped, grid):
        residual = integers(grouped / scale[:, :, None], grid).mul_(scale[:, :, None])
        error = residual.sub_(grouped).abs_().pow_(p).sum(-1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best = torch.where(better, scale, best)
    return best
