"""Integers and a scale for each group of weights that were once `scale * q` and then rounded.

A scale has an interval in which every product is rounded to its weight: [w - h, w + h] / q, with h
half of a step of the type, over all weights of the group. A start is the largest weight divided by
a level: the first by the outermost one, as in Q4_0 (d = signed extremum / -8), Q8_0 and other
formats that find scales by the extremum; trained scales are found by further ones. From a start
follow the integers, from these the interval, and from its middle the nearest number that the codec
stores. What counts is the comparison at the end: every q * s, rounded, is the weight.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property

import torch
from torch import Tensor

from lrqat.grids.grid import Float8Scale, FloatScale, Grid, PowerOfTwoScale, ScaleCodec
from lrqat.grids.quantize import integers
from lrqat.importing.rounded import Rounded

# Where integers are larger, rounding to bfloat16 may move a weight past the half of a step.
_SURE = 32
TOGETHER = 1 << 18  # weights of several starts at once
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

    def starts(self, groups: Rounded) -> "Starts":
        """Scales to begin with."""
        levels = _levels_at_extremum(self.levels, self.grid.signed_scale)
        width = None
        if self.span:
            width = (groups.value.amax(1) - groups.value.amin(1)) / self.span
            width = torch.where(width > 0, width, torch.nan)
        extremum = groups.extremum()
        largest = torch.where(extremum != 0, extremum.abs(), torch.nan)
        return Starts(largest, extremum < 0, levels, width)


@cache
def _levels_at_extremum(levels: frozenset[int], signed: bool) -> tuple[tuple[int, bool, bool], ...]:
    """At which level the weight with the largest magnitude may be, the outermost first.

    Returns:
        What its magnitude is divided by (negative: the scale is), and whether the ladder has that
        level for a positive extremum, and its negative for a negative one.
    """
    found = []
    for size in sorted({abs(level) for level in levels} - {0}, reverse=True):
        # A negative scale gives something new where larger integers have no mirror image.
        inner = {level for level in levels if abs(level) <= size}
        turns = signed and inner != {-level for level in inner}
        tried = (size, -size) if turns else (size,)
        found += [(level, level in levels, -level in levels) for level in tried]
    return tuple(found)


@dataclass(frozen=True)
class Starts:
    """Scales to begin with, the likeliest first, each computed when it is asked for.

    Attributes:
        largest: magnitude of the largest weight of each group, NaN for zeros: (n,).
        negative: whether that weight is negative, bool (n,).
        levels: of `_levels_at_extremum`.
        width: range of a group divided by that of its integers, which goes first; None: it says
            nothing.
    """

    largest: Tensor
    negative: Tensor
    levels: tuple[tuple[int, bool, bool], ...]
    width: Tensor | None

    def __len__(self) -> int:
        return len(self.levels) + (self.width is not None)

    def __getitem__(self, i: int) -> Tensor:
        """A scale for each group, NaN where there is none: float32 (n,)."""
        if self.width is not None and i == 0:
            return self.width
        level, for_positive, for_negative = self.levels[i - (self.width is not None)]
        start = self.largest / level
        if for_positive and for_negative:
            return start
        return start.masked_fill_(self.negative != for_negative, torch.nan)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def together(self, first: int, last: int) -> Tensor:
        """Several of them: (starts, n)."""
        return torch.stack([self[i] for i in range(first, min(last, len(self)))])

    def of(self, rows: Tensor) -> "Starts":
        """Those of some groups."""
        width = None if self.width is None else self.width[rows]
        return Starts(self.largest[rows], self.negative[rows], self.levels, width)


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

    def of(self, rows: Tensor) -> "Solved":
        """What was found for some of the groups."""
        return Solved(*(getattr(self, each.name)[rows] for each in fields(self)))

    def take_better(self, rows: Tensor, other: "Solved") -> None:
        """Take over what is better for the groups `rows`."""
        better = other.hits > self.hits[rows]
        for each in fields(self):
            getattr(self, each.name)[rows[better]] = getattr(other, each.name)[better]


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
    starts = ladder.starts(groups)
    first = 0
    while first < len(starts) and not bool(found.exact.all()):
        # The first one is right for most groups; the further, for few, are tried together.
        left = (~found.exact).nonzero().squeeze(1)
        count = max(1, TOGETHER // (len(left) * size)) if first else 1
        tried = starts.of(left).together(first, first + count)
        usable = tried.isfinite().any(0).nonzero().squeeze(1)
        if len(usable):
            rows = left[usable]
            found.take_better(rows, _best(groups[rows], tried[:, usable], ladder))
        if not first:
            _try_neighbours(groups, starts, ladder, found)
        first += count
    return found


def _best(groups: Rounded, starts: Tensor, ladder: Ladder) -> Solved:
    """Of several starts (starts, n) the first that gives the most weights."""
    if len(starts) == 1:
        return _attempt(groups, starts[0], ladder)
    count, rows = starts.shape
    several = Rounded(groups.value.repeat(count, 1), groups.dtype)
    tried = _attempt(several, starts.flatten().nan_to_num(1.0), ladder)
    hits = torch.where(starts.isfinite(), tried.hits.view(count, rows), -2)
    return replace(tried, hits=hits.flatten()).of(first_best(hits))


def first_best(hits: Tensor) -> Tensor:
    """Where the first of the largest numbers of each column of (k, n) is, in the flat tensor."""
    count, rows = hits.shape
    sooner = torch.arange(count, 0, -1)[:, None]
    return (hits * (count + 1) + sooner).argmax(0) * rows + torch.arange(rows)


def _attempt(groups: Rounded, start: Tensor, ladder: Ladder) -> Solved:
    value, (least, most) = groups.value, groups.ends()
    scale = start
    coarse = groups.is_coarse and max(-ladder.low, ladder.high) > _SURE
    for sure in (True, False) if coarse else (False,):
        q = ladder.nearest(value / scale[:, None])
        unused = q == 0
        if sure:
            magnitude = value.abs()
            largest = magnitude == magnitude.amax(1, keepdim=True)
            unused |= ~largest & (q.abs() > _SURE)
        ends = least / q, most / q
        low = torch.minimum(*ends).masked_fill_(unused, -torch.inf).amax(1)
        high = torch.maximum(*ends).masked_fill_(unused, torch.inf).amin(1)
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


def _try_neighbours(groups: Rounded, starts: Starts, ladder: Ladder, found: Solved) -> None:
    """Where weights are too coarse to go by integers: every float16 near the first start."""
    left = (~found.exact).nonzero().squeeze(1)
    if not len(left) or not _needs_neighbours(groups, ladder):
        return
    tried = groups[left]
    start = starts[0][left].half()
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
