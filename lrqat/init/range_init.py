"""The scales (and minima, and zero-points) that training starts from.

    minmax       covers every weight of the group
    lp           for each group, the candidate with the least sum |W - Wq|^p (the LR-QAT paper's
                 search: p = 4, 100 candidates)
    importance   the same search with each weight's error multiplied by the mean square of its
                 input channel: what llama.cpp calls an importance matrix, p = 2

Everything works group by group. Candidates are fractions of the min-max range; the best one's scale
(and minimum) is then refined by weighted least squares for the integers it gives. On grids with
two-level scales the sub-scales are settled last, when it is known what the file can store.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lrqat.grids.grid import Grid, TwoLevelScale
from lrqat.grids.quantize import Scales, dequantize, integers
from lrqat.grids.scale_codecs import compose, two_levels

CANDIDATES = 100  # the paper's grid search
_REFINEMENTS = 2
_CHUNK_WEIGHTS = 1 << 22  # 16 MB in float32: the search holds three of these


@dataclass(frozen=True)
class RangeInit:
    """A way to find scales.

    Attributes:
        search: whether candidates are compared, or min-max taken as it is.
        p: exponent of the error.
        weighted: whether the second moments of the input channels are needed.
        summary: one line for `--help` and the documentation.
    """

    search: bool
    p: float
    weighted: bool
    summary: str


RANGE_INITS: dict[str, RangeInit] = {
    "lp": RangeInit(True, 4.0, False, "least L4 error of the weights, by group"),
    "l2": RangeInit(True, 2.0, False, "least squared error of the weights, by group"),
    "importance": RangeInit(True, 2.0, True, "least squared error, weighted by the inputs"),
    "minmax": RangeInit(False, 0.0, False, "the range of each group"),
}


def find_scales(
    weight: Tensor,
    grid: Grid,
    how: str | RangeInit = "lp",
    importance: Tensor | None = None,
) -> Scales:
    """Start scales for `weight`.

    Args:
        weight: (out, in), any floating dtype.
        grid: grid to fit.
        how: a name in `RANGE_INITS`, or an entry of one's own.
        importance: (in,) mean square of each input channel, where `how` asks for it.

    Returns:
        float32 (out, groups) each, as stored: rounding them again changes nothing.
    """
    init = RANGE_INITS[how] if isinstance(how, str) else how
    rows = max(1, _CHUNK_WEIGHTS // weight.shape[1])
    chunks = [_of_rows(chunk, grid, init, importance) for chunk in weight.detach().split(rows)]
    columns = zip(*(chunk.parts() for chunk in chunks), strict=True)
    return Scales.of(_concatenated(parts) for parts in columns)


def _of_rows(weight: Tensor, grid: Grid, init: RangeInit, importance: Tensor | None) -> Scales:
    rows, columns = weight.shape
    grouped = weight.float().reshape(rows * grid.groups(columns), -1)
    error = _Error(grouped, _importance_of(grouped, rows, importance, init), init.p or 2.0)
    best = _search(grouped, grid, error) if init.search else next(_candidates(grouped, grid))
    by_row = Scales.of(None if v is None else v.view(rows, -1) for v in best.parts())
    stored = by_row.stored(grid, columns)
    if init.search and isinstance(grid.scale, TwoLevelScale):
        stored = _settle(stored, grid, columns, error)
    return stored


def _concatenated(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def _importance_of(
    grouped: Tensor, rows: int, importance: Tensor | None, init: RangeInit
) -> Tensor | None:
    """Factors of the errors, broadcast to `grouped` (rows * groups, size); None for ones."""
    if not init.weighted or importance is None:
        return None
    factors = importance.float().to(grouped.device).view(-1, grouped.shape[1])
    # A channel that calibration never saw still counts a little.
    factors = factors + 1e-3 * factors.mean() + 1e-30
    return factors.repeat(rows, 1)


class _Error:
    """Weighted L_p error of each group, (groups,), for integers and scales of the groups."""

    def __init__(self, target: Tensor, factors: Tensor | None, p: float) -> None:
        self.target, self.factors, self.p = target, factors, p

    def __call__(self, q: Tensor, scales: Scales) -> Tensor:
        residual = dequantize(q, scales).sub_(self.target)
        powers = residual.square_() if self.p == 2 else residual.abs_().pow_(self.p)
        return (powers if self.factors is None else powers.mul_(self.factors)).sum(-1)


def _quantise(target: Tensor, grid: Grid, scales: Scales) -> Tensor:
    latent = target if scales.offset is None else target + scales.offset
    return integers(latent / scales.scale, grid)


def _search(grouped: Tensor, grid: Grid, error: _Error) -> Scales:
    """The best candidate of each group (groups, size), refined. Every part is (groups, 1)."""
    least, best = None, None
    for candidate in _candidates(grouped, grid):
        q = _quantise(grouped, grid, candidate)
        least, best = _better(least, best, error(q, candidate), candidate)
    assert best is not None
    for _ in range(_REFINEMENTS):
        q = _quantise(grouped, grid, best)
        refined = _as_stored(_least_squares(grouped, q, grid, best, error.factors), grid)
        q = _quantise(grouped, grid, refined)
        least, best = _better(least, best, error(q, refined), refined)
    return best


def _better(
    least: Tensor | None, best: Scales | None, error: Tensor, candidate: Scales
) -> tuple[Tensor, Scales]:
    if least is None or best is None:
        return error, candidate
    wins = error < least
    wins_group = wins[:, None]
    chosen = (
        None if new is None or old is None else torch.where(wins_group, new, old)
        for new, old in zip(candidate.parts(), best.parts(), strict=True)
    )
    return torch.where(wins, error, least), Scales.of(chosen)


def _candidates(grouped: Tensor, grid: Grid) -> Iterator[Scales]:
    """Scales (groups, 1) to try, from the widest to the narrowest; the first is min-max."""
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    covering = _covering_symmetric if grid.symmetric else _covering_asymmetric
    for step in range(CANDIDATES, 0, -1):
        for scales in covering(low, high, step / CANDIDATES, grid):
            yield _as_stored(scales, grid)


def _covering_symmetric(low: Tensor, high: Tensor, part: float, grid: Grid) -> Iterator[Scales]:
    if not grid.signed_scale:
        yield Scales(torch.maximum(high / grid.q_max, low / grid.q_min) * part)
        return
    # Signed-max rule: the weight of largest magnitude gets the longer side of the grid.
    long, short = sorted((grid.q_min, grid.q_max), key=abs, reverse=True)
    extreme = torch.where(high > -low, high, low) * part
    yield Scales(extreme / long)
    yield Scales(extreme / short)


def _covering_asymmetric(low: Tensor, high: Tensor, part: float, grid: Grid) -> Iterator[Scales]:
    # Zero stays inside: ONNX needs an integer for it, and the K-quants' minima are not negative.
    low, high = low.clamp_max(0) * part, high.clamp_min(0) * part
    scale = (high - low) / (grid.q_max - grid.q_min)
    if grid.zero_point:
        # The zero-point belongs to the scale as it is stored.
        scale = _as_stored(Scales(scale), grid).scale
        zero_point = (grid.q_min - low / scale).round().clamp(grid.q_min, grid.q_max)
        yield Scales(scale, zero_point=zero_point)
    else:
        yield Scales(scale, minimum=-low)


def _as_stored(scales: Scales, grid: Grid) -> Scales:
    """Rounded as stored where that is decided group by group; two-level scales come later."""
    if isinstance(grid.scale, TwoLevelScale):
        tiny = torch.finfo(torch.float16).smallest_normal
        sign = torch.where(scales.scale < 0, -1.0, 1.0) if grid.signed_scale else 1.0
        scale = scales.scale.abs().clamp_min(tiny) * sign
        minimum = scales.minimum
        return Scales(scale, None if minimum is None else minimum.clamp_min(0))
    return scales.stored(grid, 1)


def _least_squares(
    target: Tensor, q: Tensor, grid: Grid, scales: Scales, factors: Tensor | None
) -> Scales:
    """The scale (and minimum) that fit `target` (groups, size) best for the integers `q`."""
    h = torch.ones_like(target) if factors is None else factors

    def moment(values: Tensor) -> Tensor:
        return (h * values).sum(-1, keepdim=True)

    if grid.minimum is None:
        zero = scales.zero_point
        centred = q if zero is None else q - zero
        scale = moment(centred * target) / moment(centred.square()).clamp_min(1e-30)
        return Scales(_keep_usable(scale, scales.scale, grid), zero_point=zero)
    ones, q1, q2 = moment(torch.ones_like(q)), moment(q), moment(q.square())
    w1, wq = moment(target), moment(q * target)
    determinant = (ones * q2 - q1.square()).clamp_min(1e-30)
    scale = _keep_usable((ones * wq - q1 * w1) / determinant, scales.scale, grid)
    return Scales(scale, minimum=(scale * q1 - w1) / ones)


def _keep_usable(scale: Tensor, before: Tensor, grid: Grid) -> Tensor:
    """The fitted scale, or the one before where the fit vanished or turned negative."""
    usable = scale.abs() > 1e-3 * before.abs() if grid.signed_scale else scale > 1e-3 * before
    return torch.where(usable, scale, before)


def _settle(scales: Scales, grid: Grid, columns: int, error: _Error) -> Scales:
    """Try the neighbours of every stored sub-scale and sub-minimum, super-scales unchanged."""
    size = columns // scales.scale.shape[1]
    candidates = list(_neighbours(scales.scale, grid.scale, grid.signed_scale, size))
    minima: list[Tensor | None] = [None]
    if scales.minimum is not None:
        minima = list(_neighbours(scales.minimum, grid.minimum, False, size))
    least, best = None, None
    for scale, minimum in itertools.product(candidates, minima):
        flat = None if minimum is None else minimum.reshape(-1, 1)
        candidate = Scales(scale.reshape(-1, 1), flat)
        q = _quantise(error.target, grid, candidate)
        least, best = _better(least, best, error(q, candidate), candidate)
    assert best is not None
    return Scales.of(None if v is None else v.view_as(scales.scale) for v in best.parts())


def _neighbours(values: Tensor, codec: object, signed: bool, size: int) -> Iterator[Tensor]:
    """`values` (out, groups) as stored, and with each sub-scale one lower or higher.

    The largest sub-scale of a super-block defines its super-scale and is left alone.
    """
    assert isinstance(codec, TwoLevelScale)
    super_scale, sub = two_levels(values, codec, signed=signed, group_size=size)
    free = sub.abs() < codec.most
    lowest = max(codec.least, 1) if signed else codec.least
    for change in (0, -1, 1):
        moved = (sub.abs() + change).clamp(lowest, codec.most) * torch.where(sub < 0, -1.0, 1.0)
        yield compose(super_scale, torch.where(free, moved, sub))
