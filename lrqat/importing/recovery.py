"""A matrix of weights on one grid: integers and scales that give it back, or how much of it.

    symmetric, zero-point     `lrqat.importing.scaled`
    float16 minima            `lrqat.importing.offset`
    two levels                scales first, as intervals; each super-block of them is recovered once
                              more, as integers (the sub-scales) and a scale

Minima of two levels (Q2_K, Q4_K, Q5_K) are not told from weights: a file has them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrqat.checkpoint.reader import QuantizedTensor
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.grids.grid import Float8Scale, Grid, TwoLevelScale
from lrqat.grids.scale_codecs import tensor_and_groups
from lrqat.importing.offset import solve_offset
from lrqat.importing.rounded import Rounded
from lrqat.importing.scaled import Ladder, Solved, solve

_PIECE_WEIGHTS = 1 << 20


@dataclass(frozen=True)
class Recovered:
    """What was found on one grid.

    Attributes:
        tensor: integers and scales.
        exact: weights that they give back, bit for bit in the type of the weights.
        difference: the largest difference from a weight.
    """

    tensor: QuantizedTensor
    exact: int
    difference: float

    @property
    def share(self) -> float:
        """Of the weights that are exact."""
        return self.exact / max(self.tensor.q.size, 1)


def is_recoverable(grid: Grid) -> bool:
    """Whether weights alone tell the integers and scales of a grid."""
    return not isinstance(grid.minimum, TwoLevelScale)


def recover(name: str, weight: Tensor, grid: Grid) -> Recovered:
    """Integers and scales of a matrix on `grid`, of which q * s is as often the weight as can be.

    Args:
        name: of the module.
        weight: (out, in) in the type that it was rounded to: bfloat16, float16 or float32.
        grid: one that fits its rows, and that `is_recoverable`.
    """
    found = list(_pieces(name, weight, grid))
    tensor = QuantizedTensor.join(name, found) if len(found) > 1 else found[0]
    if isinstance(grid.scale, Float8Scale):
        tensor = _with_tensor_scale(tensor)
    return measured(tensor, weight)


def measured(tensor: QuantizedTensor, weight: Tensor) -> Recovered:
    """How much of a matrix integers and scales give back, some rows at a time."""
    exact, difference = 0, 0.0
    for rows in row_spans(*weight.shape):
        made = torch.from_numpy(tensor.take(np.arange(rows.start, rows.stop)).dequantize())
        asked = weight[rows].float()
        exact += int(Rounded(asked, weight.dtype).equal(made).sum())
        rounded = made.to(weight.dtype).float()
        difference = max(difference, float((rounded - asked).abs().max()))
    return Recovered(tensor, exact, difference)


def row_spans(rows: int, columns: int) -> Iterator[slice]:
    """Some rows at a time."""
    step = max(1, _PIECE_WEIGHTS // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _pieces(name: str, weight: Tensor, grid: Grid) -> Iterator[QuantizedTensor]:
    groups = grid.groups(weight.shape[1])
    for rows in row_spans(*weight.shape):
        piece = weight[rows]
        values = Rounded(piece.float().reshape(len(piece) * groups, -1), weight.dtype)
        shape = (len(piece), groups)
        if grid.minimum is not None:
            solved, minimum = solve_offset(values, grid)
            scales = StoredScales(_array(solved.scale, shape), minimum=_array(minimum, shape))
        elif isinstance(grid.scale, TwoLevelScale):
            solved, scales = _two_levels(values, grid, shape)
        else:
            solved = solve(values, Ladder.of(grid, grid.scale))
            scales = StoredScales(_array(solved.scale, shape), _zero_points(solved, grid, shape))
        q = solved.q
        if scales.zero_point is not None:
            q = q + torch.from_numpy(scales.zero_point.astype(np.float32)).view(-1, 1)
        codes = q.clamp(grid.q_min, grid.q_max).to(torch.int8).numpy().reshape(piece.shape)
        yield QuantizedTensor(name, codes, scales, grid)


def _array(part: Tensor, shape: tuple[int, int]) -> NDArray[Any]:
    return part.to(torch.float32).numpy().reshape(shape)


def _zero_points(solved: Solved, grid: Grid, shape: tuple[int, int]) -> NDArray[Any] | None:
    """Of the zero-points that keep all integers in the range, the one nearest to 0."""
    if not grid.zero_point:
        return None
    least = grid.q_min - solved.q.amin(1)
    most = grid.q_max - solved.q.amax(1)
    chosen = torch.zeros_like(least).clamp(min=least).minimum(most.maximum(least))
    return chosen.clamp(grid.q_min, grid.q_max).to(torch.int8).numpy().reshape(shape)


def _two_levels(values: Rounded, grid: Grid, shape: tuple[int, int]) -> tuple[Solved, StoredScales]:
    """Sub-scales are recovered as if they were the integers of weights: the scales."""
    codec = grid.scale
    assert isinstance(codec, TwoLevelScale)
    free = solve(values, Ladder.of(grid, None))
    per_block = codec.super_block // values.value.shape[1]
    middle = ((free.low + free.high) / 2).view(-1, per_block)
    sub_grid = Grid("sub-scales", codec.sub_bits, codec.least, codec.most, per_block, "",
                    signed_scale=True)  # fmt: skip
    supers, sub = _sub_scales(middle, free, sub_grid)
    scale = (supers[:, None] * sub).view(-1)
    q = Ladder.of(grid, None).nearest(values.value / scale[:, None])
    hits = values.equal(q * scale[:, None]).sum(1)
    rows, groups = shape
    scales = StoredScales(
        _array(scale, shape),
        super_scale=_array(supers, (rows, groups // per_block)),
        sub_scale=sub.to(torch.int8).numpy().reshape(rows, groups),
    )
    return Solved(q, scale, hits, scale, scale), scales


def _sub_scales(middle: Tensor, free: Solved, grid: Grid) -> tuple[Tensor, Tensor]:
    """A float16 (n,) and integers (n, groups) whose products lie in the most intervals."""
    low, high = (torch.minimum(free.low, free.high), torch.maximum(free.low, free.high))
    slack = middle.abs() * 2.0**-21
    low, high = low.view_as(middle) - slack, high.view_as(middle) + slack
    best = torch.full((len(middle),), -1)
    supers, subs = torch.ones(len(middle)), torch.ones_like(middle)
    groups = Rounded(middle, torch.float32)
    for start in Ladder.of(grid, None).starts(groups):
        left = (start.isfinite() & (best < middle.shape[1])).nonzero().squeeze(1)
        if not len(left):
            continue
        sub = (middle[left] / start[left, None]).round().clamp(grid.q_min, grid.q_max)
        sub = torch.where(sub == 0, 1.0, sub)
        ends = low[left] / sub, high[left] / sub
        centre = (torch.minimum(*ends).amax(1) + torch.maximum(*ends).amin(1)) / 2
        d = centre.half().float()
        products = d[:, None] * sub
        hits = ((products >= low[left]) & (products <= high[left])).sum(1)
        better = (hits > best[left]) & (d != 0) & d.isfinite()
        rows = left[better]
        best[rows], supers[rows], subs[rows] = hits[better], d[better], sub[better]
    return supers, subs


def _with_tensor_scale(tensor: QuantizedTensor) -> QuantizedTensor:
    """The power of two that all scales share; scales that it does not reach are moved."""
    scale = torch.from_numpy(tensor.scales.scale)
    top, of_groups = tensor_and_groups(scale)
    shared = top.expand(len(scale), 1).contiguous().numpy()
    scales = StoredScales((top * of_groups).numpy(), tensor_scale=shared)
    return QuantizedTensor(tensor.name, tensor.q, scales, tensor.grid)
