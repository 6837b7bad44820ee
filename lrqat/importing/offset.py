"""Integers, scales and minima of weights that were once `scale * q - minimum` and then rounded.

The smallest and the largest weight of a group are two integers of the grid: the first and the last
one, where the minimum was found by the extremes (Q4_1, Q5_1), or others that lie far apart. Two
weights give a scale, and it the integers; then for every float16 that the minimum may be, the
scale has an interval, as in `lrqat.importing.scaled`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from lrqat.grids.grid import FloatScale, Grid
from lrqat.importing.rounded import Rounded
from lrqat.importing.scaled import Solved, nearest_stored

_NEIGHBOURS = {torch.bfloat16: 5, torch.float16: 2, torch.float32: 1}
_HALF = FloatScale()
_MOST_WEIGHTS = 1 << 20  # of all starts at once


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
    for scale, offset in _starts(groups, grid):
        left = (~found.exact).nonzero().squeeze(1)
        if not len(left):
            break
        each, near = _attempt(groups[left], scale[left], offset[left], grid)
        better = each.hits > found.hits[left]
        minimum[left[better]] = near[better]
        found.take_better(left, each)
    return found, minimum


def solvable_offset(groups: Rounded, grid: Grid) -> Tensor:
    """Which groups `solve_offset` recovers, bool (n,); all starts at once, so for few groups."""
    found = torch.zeros(len(groups.value), dtype=torch.bool)
    starts = list(_starts(groups, grid))
    step = max(1, _MOST_WEIGHTS // (groups.value.numel() * (2 * _NEIGHBOURS[groups.dtype] + 1)))
    for i in range(0, len(starts), step):
        scale, offset = (torch.stack(part) for part in zip(*starts[i : i + step], strict=True))
        several = Rounded(groups.value.repeat(len(scale), 1), groups.dtype)
        solved, _ = _attempt(several, scale.flatten(), offset.flatten(), grid)
        found |= solved.exact.view(scale.shape).any(0)
        if bool(found.all()):
            break
    return found


def _starts(groups: Rounded, grid: Grid) -> Iterator[tuple[Tensor, Tensor]]:
    """Scales and minima (n,) to begin with, the likeliest first."""
    least, most = groups.value.amin(1), groups.value.amax(1)
    for first, last in _pairs(grid):
        scale = (most - least) / (last - first)
        scale = torch.where(scale > 0, scale, 1.0)  # all weights alike: the minimum is all
        yield scale, first * scale - least


def _pairs(grid: Grid) -> Iterator[tuple[int, int]]:
    """Two integers, those furthest apart first; down to an eighth of the range."""
    most = grid.q_max
    for distance in range(most, most // 8, -1):
        yield from ((first, first + distance) for first in range(most - distance + 1))


def _attempt(groups: Rounded, scale: Tensor, minimum: Tensor, grid: Grid) -> tuple[Solved, Tensor]:
    """With all minima near by, on a dimension of their own: (n, minima, size)."""
    least, most = groups.ends()
    scale, minimum = _fitted(groups.value, most - least, scale, minimum, grid)
    near = _near(minimum, _NEIGHBOURS[groups.dtype])
    moved = near[..., None]
    q = ((groups.value[:, None] + moved) / scale[:, None, None]).round_().clamp_(0, grid.q_max)
    low = torch.where(q > 0, (least[:, None] + moved) / q, -torch.inf).amax(2)
    high = torch.where(q > 0, (most[:, None] + moved) / q, torch.inf).amin(2)
    middle = (low + high) / 2
    stored = nearest_stored(torch.where(middle.isfinite(), middle, scale[:, None]).abs(), _HALF)
    products = q * stored[..., None] - moved
    flat = Rounded(groups.value.repeat_interleave(near.shape[1], 0), groups.dtype)
    hits = flat.equal(products.flatten(0, 1)).sum(1).view(near.shape)
    best = hits.argmax(1, keepdim=True)
    chosen = [part.gather(1, best).squeeze(1) for part in (stored, hits, near, low, high)]
    q = q.gather(1, best[..., None].expand(-1, -1, q.shape[2])).squeeze(1)
    return Solved(q, chosen[0], chosen[1], chosen[3], chosen[4]), chosen[2]


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
