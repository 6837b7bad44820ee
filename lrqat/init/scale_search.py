"""Finding scales by trying candidates, for the starts in `lrqat.init.range_init`.

Everything works group by group. Candidates are fractions of the min-max range; the best one's scale
(and minimum) is then refined by weighted least squares for the integers it gives. On grids with
two-level scales the sub-scales are settled last, when it is known what the file can store.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from lrqat.grids.grid import Grid, TwoLevelScale
from lrqat.grids.quantize import Scales, dequantize, integers
from lrqat.grids.scale_codecs import compose, two_levels

CANDIDATES = 100  # the paper's grid search
_REFINEMENTS = 2


def cover(weight: Tensor, grid: Grid, importance: Tensor | None = None) -> Scales:
    """Scales that cover every weight of the group: min-max.

    Args:
        weight: float32 (rows, in).
        grid: grid to fit.
        importance: has no effect.

    Returns:
        float32 (rows, groups) each, as stored.
    """
    return _by_row(next(_candidates(_grouped(weight, grid), grid, 1)), weight, grid)


def search(
    weight: Tensor,
    grid: Grid,
    importance: Tensor | None = None,
    *,
    p: float,
    candidates: int = CANDIDATES,
) -> Scales:
    """For each group, the candidate with the least sum of h |W - Wq|^p, refined.

    Args:
        weight: float32 (rows, in).
        grid: grid to fit.
        importance: (in,) mean square of each input channel, the factors h; None for ones.
        p: exponent of the error.
        candidates: fractions of the range of a group that are tried.

    Returns:
        float32 (rows, groups) each, as stored.
    """
    grouped = _grouped(weight, grid)
    error = _Error(grouped, _factors(grouped, len(weight), importance), p)
    scales = _by_row(_search(grouped, grid, error, candidates), weight, grid)
    if isinstance(grid.scale, TwoLevelScale):
        scales = _settle(scales, grid, weight.shape[1], error)
    return scales


def _grouped(weight: Tensor, grid: Grid) -> Tensor:
    """(rows, in) as (rows * groups, size)."""
    rows, columns = weight.shape
    return weight.reshape(rows * grid.groups(columns), -1)


def _by_row(scales: Scales, weight: Tensor, grid: Grid) -> Scales:
    """Scales (rows * groups, 1) as (rows, groups), rounded as the file stores them."""
    rows, columns = weight.shape
    by_row = Scales.of(None if part is None else part.view(rows, -1) for part in scales.parts())
    return by_row.stored(grid, columns)


def _factors(grouped: Tensor, rows: int, importance: Tensor | None) -> Tensor | None:
    """Factors of the errors, broadcast to `grouped` (rows * groups, size); None for ones."""
    if importance is None:
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


def _search(grouped: Tensor, grid: Grid, error: _Error, candidates: int) -> Scales:
    """The best candidate of each group (groups, size), refined. Every part is (groups, 1)."""
    least, best = None, None
    for candidate in _candidates(grouped, grid, candidates):
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


def _candidates(grouped: Tensor, grid: Grid, count: int) -> Iterator[Scales]:
    """Scales (groups, 1) to try, from the widest to the narrowest; the first is min-max."""
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    covering = _covering_symmetric if grid.symmetric else _covering_asymmetric
    for step in range(count, 0, -1):
        for scales in covering(low, high, step / count, grid):
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
