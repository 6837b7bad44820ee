"""Integers and a scale for each group of weights that were once `scale * q` and then rounded.

A scale has an interval in which every product is rounded to its weight: [w - h, w + h] / q, with h
half of a step of the type, over all weights of the group. A start is the largest weight divided by
a level: the first by the outermost one, as in Q4_0 (d = signed extremum / -8), Q8_0 and other
formats that find scales by the extremum; trained scales are found by further ones. From a start
follow the integers, from these the interval, and from its middle the nearest number that the codec
stores. What counts is the comparison at the end: every q * s, rounded, is the weight.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lrqat.grids.grid import Float8Scale, FloatScale, Grid, PowerOfTwoScale, ScaleCodec
from lrqat.grids.quantize import integers
from lrqat.importing.rounded import Rounded

# Where integers are larger, rounding to bfloat16 may move a weight past the half of a step.
_SURE = 32
_MOST_WEIGHTS = 1 << 20  # of all starts at once
_NEIGHBOURS = 16  # numbers of float16 on either side of a scale that bfloat16 cannot tell apart


@dataclass(frozen=True)
class Ladder:
    """The integers that a group may have.

    Attributes:
        grid: whose they are.
        low: smallest integer.
        high: largest integer; with zero-points, both are of q - zero_point.
        codec: how the scale is stored; None: any number.
        span: how far the integers of one group may lie apart, where low and high are further.
    """

    grid: Grid
    low: int
    high: int
    codec: ScaleCodec | None
    span: int | None = None

    @classmethod
    def of(cls, grid: Grid, codec: ScaleCodec | None) -> "Ladder":
        """That of a grid."""
        if grid.zero_point:
            span = grid.q_max - grid.q_min
            return cls(grid, -span, span, codec, span)
        return cls(grid, grid.q_min, grid.q_max, codec)

    @cached_property
    def levels(self) -> frozenset[int]:
        """All of them."""
        return frozenset(self.grid.levels or range(self.low, self.high + 1))

    def nearest(self, latent: Tensor) -> Tensor:
        """The integers nearest to `latent`, which may be overwritten."""
        if self.grid.levels is not None:
            return integers(latent, self.grid)
        return latent.round_().clamp_(self.low, self.high)

    def stored(self, scale: Tensor) -> Tensor:
        """The nearest scales that the codec has."""
        return nearest_stored(scale, self.codec)

    def starts(self, groups: Rounded) -> Tensor:
        """Scales to begin with, the likeliest first, NaN where there is none: (starts, n)."""
        extremum = groups.extremum()
        sizes = sorted({abs(level) for level in self.levels} - {0}, reverse=True)
        # At which level the extremum is, with a positive scale or a negative one.
        levels = [
            level for size in sizes for level in ((size, -size) if self._turns(size) else (size,))
        ]
        at = torch.tensor(levels)[:, None] * torch.where(extremum < 0, -1, 1)
        known = torch.isin(at, torch.tensor(sorted(self.levels)))
        starts = torch.where(known & (extremum != 0), extremum / at, torch.nan)
        if not self.span:
            return starts
        width = (groups.value.amax(1) - groups.value.amin(1)) / self.span
        return torch.cat([torch.where(width > 0, width, torch.nan)[None], starts])

    def _turns(self, size: int) -> bool:
        """Whether a negative scale gives something new where no integer is larger than `size`."""
        inner = {level for level in self.levels if abs(level) <= size}
        return self.grid.signed_scale and inner != {-level for level in inner}


@dataclass
class Solved:
    """What was found for some groups.

    Attributes:
        q: the integers, float32 (n, size); with zero-points q - zero_point.
        scale: float32 (n,).
        hits: how many weights of each group come out exactly, int64 (n,).
        low: smallest scale that the weights allow for these integers, float32 (n,).
        high: largest such scale.
    """

    q: Tensor
    scale: Tensor
    hits: Tensor
    low: Tensor
    high: Tensor

    @property
    def exact(self) -> Tensor:
        """Which groups are recovered, bool (n,)."""
        return self.hits == self.q.shape[1]

    def take_better(self, rows: Tensor, other: "Solved") -> None:
        """Take over what is better for the groups `rows`."""
        better = other.hits > self.hits[rows]
        for name in ("q", "scale", "hits", "low", "high"):
            getattr(self, name)[rows[better]] = getattr(other, name)[better]


def solve(groups: Rounded, ladder: Ladder) -> Solved:
    """The integers and scales of some groups; where there are none, the best that was tried."""
    count, size = groups.value.shape
    one = torch.ones(count)
    zero = (groups.value == 0).all(1)
    # Any scale will do for zeros, if there is an integer for them.
    hits = torch.where(zero & (0 in ladder.levels), size, -1)
    found = Solved(torch.zeros(count, size), one, hits,
                   one.clone(), one.clone())  # fmt: skip
    if 0 not in ladder.levels:
        found.q.fill_(min(ladder.levels, key=abs))
    for i, start in enumerate(ladder.starts(groups)):
        left = (start.isfinite() & ~found.exact).nonzero().squeeze(1)
        if len(left):
            found.take_better(left, _attempt(groups[left], start[left], ladder))
        if i == 0:
            _try_neighbours(groups, ladder, found)
        if bool(found.exact.all()):
            break
    return found


def solvable(groups: Rounded, ladder: Ladder) -> Tensor:
    """Which groups `solve` recovers, bool (n,); all starts at once, so for few groups only."""
    starts = ladder.starts(groups)
    found = (groups.value == 0).all(1) & (0 in ladder.levels)
    step = max(1, _MOST_WEIGHTS // groups.value.numel())
    for part in starts.split(step):
        several = Rounded(groups.value.repeat(len(part), 1), groups.dtype)
        solved = _attempt(several, part.flatten().nan_to_num(1.0), ladder)
        found |= (solved.exact.view(part.shape) & part.isfinite()).any(0)
        if bool(found.all()):
            break
    if not bool(found.all()):
        found |= solve(groups, ladder).exact if _needs_neighbours(groups, ladder) else found
    return found


def _attempt(groups: Rounded, start: Tensor, ladder: Ladder) -> Solved:
    value, (least, most) = groups.value, groups.ends()
    magnitude = value.abs()
    largest = magnitude == magnitude.amax(1, keepdim=True)
    scale = start
    coarse = groups.is_coarse and max(-ladder.low, ladder.high) > _SURE
    for sure in (True, False) if coarse else (False,):
        q = ladder.nearest(value / scale[:, None])
        used = (q != 0) & (largest | (q.abs() <= _SURE) if sure else q != 0)
        ends = least / q, most / q
        low = torch.where(used, torch.minimum(*ends), -torch.inf).amax(1)
        high = torch.where(used, torch.maximum(*ends), torch.inf).amin(1)
        middle = (low + high) / 2
        scale = torch.where(middle.isfinite() & (middle != 0), middle, scale)
    scale = ladder.stored(scale)
    q = ladder.nearest(value / scale[:, None])
    return _judged(groups, q, scale, ladder, low, high)


def _judged(
    groups: Rounded, q: Tensor, scale: Tensor, ladder: Ladder, low: Tensor, high: Tensor
) -> Solved:
    if ladder.codec is None:  # a scale of any number is not exact itself
        least, most = groups.ends()
        slack, made = groups.value.abs() * 2.0**-22, q * scale[:, None]
        hit = (made >= least - slack) & (made <= most + slack)
    else:
        hit = groups.equal(q * scale[:, None])
    hits = hit.sum(1)
    if ladder.span is not None:
        hits = torch.where(q.amax(1) - q.amin(1) <= ladder.span, hits, 0)
    if not ladder.grid.signed_scale:
        hits = torch.where(scale > 0, hits, -1)
    return Solved(q, scale, hits, low, high)


def _try_neighbours(groups: Rounded, ladder: Ladder, found: Solved) -> None:
    """Where weights are too coarse to go by integers: every float16 near the first start."""
    left = (~found.exact).nonzero().squeeze(1)
    if not len(left) or not _needs_neighbours(groups, ladder):
        return
    tried = groups[left]
    start = ladder.starts(tried)[0].half()
    for step in sorted(range(-_NEIGHBOURS, _NEIGHBOURS + 1), key=abs):
        scale = (start.view(torch.int16) + step).view(torch.float16).float()
        known = scale.isfinite() & (scale != 0)
        each, scale = tried[known], scale[known]
        q = ladder.nearest(each.value / scale[:, None])
        found.take_better(left[known], _judged(each, q, scale, ladder, scale, scale))


def _needs_neighbours(groups: Rounded, ladder: Ladder) -> bool:
    is_float = isinstance(ladder.codec, FloatScale)
    return is_float and groups.is_coarse and max(-ladder.low, ladder.high) > _SURE


def nearest_stored(scale: Tensor, codec: ScaleCodec | None) -> Tensor:
    """The nearest scale of either sign that `codec` stores, float32; never zero."""
    if codec is None:
        return scale
    if isinstance(codec, FloatScale):
        kind = {"float16": torch.float16, "float32": torch.float32}[codec.dtype]
        least = torch.finfo(kind).smallest_normal * torch.finfo(kind).eps
        most = torch.finfo(kind).max
        return scale.abs().clamp(least, most).to(kind).float().copysign(scale)
    magnitude = scale.abs().clamp(2.0**-126, 2.0**126)
    if isinstance(codec, PowerOfTwoScale):
        return torch.exp2(magnitude.log2().round()).copysign(scale)
    assert isinstance(codec, Float8Scale)  # four significant bits, the power of two is the tensor's
    fraction, exponent = torch.frexp(magnitude)
    return torch.ldexp((fraction * 16).round() / 16, exponent).copysign(scale)
