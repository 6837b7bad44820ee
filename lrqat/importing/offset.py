"""Integers, scales and minima of weights that were once `scale * q - minimum` and then rounded.

The smallest and the largest weight of a group are two integers of the grid: the first and the last
one, where the minimum was found by the extremes (Q4_1, Q5_1), or others that lie far apart. Two
weights give a scale, and it the integers; then for every float16 that the minimum may be, the
scale has an interval, as in `lrqat.importing.scaled`.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from lrqat.grids.grid import FloatScale, Grid
from lrqat.importing.rounded import Rounded
from lrqat.importing.scaled import TOGETHER, Solved, first_best, nearest_stored

_NEIGHBOURS = {torch.bfloat16: 5, torch.float16: 2, torch.float32: 1}
_HALF = FloatScale()


def solve_offset(groups: Rounded, grid: Grid) -> tuple[Solved, Tensor]:
    """The integers, scales and minima (n,) of some groups; or the best that was tried.

    Args:
        groups: the weights.
        grid: one with a float16 minimum for every group.
    """
    count, size = groups.value.shape
    one = torch.ones(count)
    found = Solved(torch.zeros(count, size), one, torch.full((count,), -1), one.clone(),
                   one.clone())  # fmt: skip
    minimum = torch.zeros(count)
    pairs, first = _pairs(grid), 0
    while first < len(pairs) and not bool(found.exact.all()):
        # The first one is right for most groups; the further, for few, are tried together.
        left = (~found.exact).nonzero().squeeze(1)
        together = max(1, TOGETHER // (len(left) * size)) if first else 1
        each, near = _best(groups[left], pairs[first : first + together], grid)
        minimum[left] = torch.where(each.hits > found.hits[left], near, minimum[left])
        found.take_better(left, each)
        first += together
    return found, minimum


def _best(groups: Rounded, pairs: Sequence[tuple[int, int]], grid: Grid) -> tuple[Solved, Tensor]:
    """Of several starts the first that gives the most weights."""
    scale, offset = (torch.stack(part) for part in zip(*_starts(groups, pairs), strict=True))
    several = Rounded(groups.value.repeat(len(pairs), 1), groups.dtype)
    tried, near = _attempt(several, scale.flatten(), offset.flatten(), grid)
    at = first_best(tried.hits.view(scale.shape))
    return tried.of(at), near[at]


def _starts(groups: Rounded, pairs: Iterable[tuple[int, int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Scales and minima (n,) by what the least and the largest weight of each group are."""
    least, most = groups.value.amin(1), groups.value.amax(1)
    for first, last in pairs:
        scale = (most - least) / (last - first)
        scale = torch.where(scale > 0, scale, 1.0)  # all weights alike: the minimum is all
        yield scale, first * scale - least


def _pairs(grid: Grid) -> list[tuple[int, int]]:
    """Two integers, those furthest apart first; down to an eighth of the range."""
    most = grid.q_max
    return [
        (first, first + distance)
        for distance in range(most, most // 8, -1)
        for first in range(most - distance + 1)
    ]


def _attempt(groups: Rounded, scale: Tensor, minimum: Tensor, grid: Grid) -> tuple[Solved, Tensor]:
    """With the minima near by, the nearest first; each for those groups that are not exact yet."""
    least, most = groups.ends()
    scale, minimum = _fitted(groups.value, most - least, scale, minimum, grid)
    near = _near(minimum, _NEIGHBOURS[groups.dtype])
    found, chosen = _with(groups, least, most, scale, near[:, 0], grid), near[:, 0].clone()
    for i in range(1, near.shape[1]):
        left = (~found.exact).nonzero().squeeze(1)
        if not len(left):
            break
        each = _with(groups[left], least[left], most[left], scale[left], near[left, i], grid)
        chosen[left] = torch.where(each.hits > found.hits[left], near[left, i], chosen[left])
        found.take_better(left, each)
    return found, chosen


def _with(
    groups: Rounded, least: Tensor, most: Tensor, scale: Tensor, minimum: Tensor, grid: Grid
) -> Solved:
    """With one minimum (n,), and the scale that follows from it."""
    moved = minimum[:, None]
    q = ((groups.value + moved) / scale[:, None]).round_().clamp_(0, grid.q_max)
    unused = q <= 0
    low = ((least + moved) / q).masked_fill_(unused, -torch.inf).amax(1)
    high = ((most + moved) / q).masked_fill_(unused, torch.inf).amin(1)
    middle = (low + high) / 2
    stored = nearest_stored(torch.where(middle.isfinite(), middle, scale).abs(), _HALF)
    hits = groups.equal(q * stored[:, None] - moved).sum(1)
    return Solved(q, stored, hits, low, high)


def _fitted(
    value: Tensor, width: Tensor, scale: Tensor, minimum: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Scale and minimum (n,) by least squares, each weight as sure as its rounding allows."""
    q = ((value + minimum[:, None]) / scale[:, None]).round_().clamp_(0, grid.q_max).double()
    sure = width.amax(1, keepdim=True) * 2.0**-8
    w = 1 / width.maximum(sure).clamp_min_(1e-30).double().square()
    total = w.sum(1, keepdim=True)
    mean_q, mean = (w * q).sum(1, keepdim=True) / total, (w * value).sum(1, keepdim=True) / total
    spread = (w * (q - mean_q).square()).sum(1)
    slope = (w * (q - mean_q) * (value - mean)).sum(1) / spread
    known = slope.isfinite() & (slope > 0)
    slope = torch.where(known, slope, scale)
    offset = torch.where(known, slope * mean_q[:, 0] - mean[:, 0], minimum)
    return slope.float(), offset.float()


def _near(minimum: Tensor, count: int) -> Tensor:
    """The float16 numbers about each minimum, itself first: float32 (n, minima)."""
    steps = torch.tensor(sorted(range(-count, count + 1), key=abs), dtype=torch.int16)
    magnitude = minimum.abs().clamp(max=65504.0).half().view(torch.int16)
    near = (magnitude[:, None] + steps).clamp_(0, 31743)  # from zero to the largest
    return near.view(torch.float16).float().copysign(minimum[:, None])
