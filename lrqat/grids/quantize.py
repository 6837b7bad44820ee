"""The one definition of the integers, of the scales and of the weights, in torch.

    q = the grid's integer nearest to V     V = Phi0 + (alpha / r) u (A B), float32 (out, in)
    W = s * q - o                           s and o one float per group of a row, as stored

u is what a step of each group is worth, see `lrqat.layers.weight`; 1 with one scale per row.

The layer's forward and backward, the fuse, the reference perplexity and (through the fused
checkpoint) every exporter use these functions and nothing else, so exported equals trained by
construction. Rounding is to nearest, ties to even; between two levels of a codebook, ties go to
the lower one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from lrqat.grids.grid import FloatScale, Grid
from lrqat.grids.scale_codecs import round_scale


@dataclass(frozen=True)
class Scales:
    """What turns integers into weights: W = scale * q - offset, see `lrqat.grids.grid`.

    Attributes:
        scale: float32 (out, groups).
        minimum: float32 (out, groups) on a grid with minima, else None.
        zero_point: float32 (out, groups), integers of the grid, if it has zero-points, else None.
    """

    scale: Tensor
    minimum: Tensor | None = None
    zero_point: Tensor | None = None

    @property
    def offset(self) -> Tensor | None:
        """float32 (out, groups), or None on a symmetric grid."""
        return self.minimum if self.zero_point is None else self.scale * self.zero_point

    @classmethod
    def of(cls, parts: Iterable[Tensor | None]) -> "Scales":
        """From scale, minimum and zero-point, in this order."""
        scale, minimum, zero_point = parts
        assert scale is not None
        return cls(scale, minimum, zero_point)

    def parts(self) -> tuple[Tensor | None, ...]:
        """Scale, minimum and zero-point."""
        return self.scale, self.minimum, self.zero_point

    def __getitem__(self, rows: slice | Tensor) -> "Scales":
        """Those of some rows."""
        return Scales.of(None if part is None else part[rows] for part in self.parts())

    def stored(self, grid: Grid, in_features: int) -> "Scales":
        """The same, rounded to what the file holds."""
        size = in_features // self.scale.shape[1]
        scale = round_scale(self.scale, grid.scale, signed=grid.signed_scale, group_size=size)
        minimum = self.minimum
        if minimum is not None and grid.minimum is not None:
            minimum = stored_minimum(minimum, grid, size)
        return Scales(scale, minimum, self.zero_point)


def stored_scale(scale: Tensor, grid: Grid, in_features: int) -> Tensor:
    """Scales (out, groups) rounded to what the file can hold, see `lrqat.grids.scale_codecs`."""
    return Scales(scale).stored(grid, in_features).scale


def stored_minimum(minimum: Tensor, grid: Grid, group_size: int) -> Tensor:
    """Minima (out, groups) rounded to what the file can hold."""
    assert grid.minimum is not None
    # Q4_1 and Q5_1 store any float16; the K-quants only minima that are not negative.
    signed = isinstance(grid.minimum, FloatScale)
    return round_scale(minimum, grid.minimum, signed=signed, group_size=group_size)


def integers(latent: Tensor, grid: Grid) -> Tensor:
    """The grid's integers nearest to `latent`, in its dtype and shape; may overwrite `latent`."""
    if grid.levels is None:
        return latent.round_().clamp_(grid.q_min, grid.q_max)
    table, low, high = _codebook(grid, latent.device, latent.dtype)
    halves = latent.mul(2).ceil_().nan_to_num_(nan=high).clamp_(low, high).to(torch.int32)
    return table.index_select(0, halves.sub_(low).flatten()).view(latent.shape)


def limits(grid: Grid) -> tuple[float, float]:
    """Half a step beyond the outermost integers: what lies further out is clipped."""
    below = above = 0.5
    if grid.levels is not None:
        below, above = (
            (grid.levels[1] - grid.levels[0]) / 2,
            (grid.levels[-1] - grid.levels[-2]) / 2,
        )
    return grid.q_min - below, grid.q_max + above


def inside(latent: Tensor, grid: Grid) -> Tensor:
    """Where nothing is clipped, as bool."""
    low, high = limits(grid)
    return (latent >= low) & (latent <= high)


def where_inside(gradient: Tensor, latent: Tensor, grid: Grid) -> Tensor:
    """`gradient` where nothing is clipped and 0 elsewhere: a new tensor of its shape and dtype."""
    low, high = limits(grid)
    # One pass, and none over bools. It keeps what is strictly between: widen by the least step.
    eps = torch.finfo(latent.dtype).eps
    low, high = low - abs(low) * eps, high + abs(high) * eps
    return torch.ops.aten.hardtanh_backward(gradient, latent, low, high)


@cache
def _codebook(grid: Grid, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, int, int]:
    """The nearest level of every x with the same ceil(2x), and the least and most of those.

    Levels are whole numbers, so what lies halfway between two of them is a multiple of 1/2, and
    all x between two such multiples have one nearest level. It is looked up, which takes a
    twentieth of the time of a search among the borders.
    """
    levels = torch.tensor(grid.levels, dtype=torch.float64)
    borders = (levels[1:] + levels[:-1]) / 2
    low, high = int(2 * borders[0]), int(2 * borders[-1]) + 1
    halves = torch.arange(low, high + 1, dtype=torch.float64) / 2
    table = levels[torch.bucketize(halves, borders)]
    return table.to(device, dtype), low, high


def per_weight(scale: Tensor, in_features: int) -> Tensor:
    """Repeat scales (out, groups) along the inputs: (out, in_features), a view for one group."""
    rows, groups = scale.shape
    if groups == 1:
        return scale.expand(rows, in_features)
    return scale[:, :, None].expand(-1, -1, in_features // groups).reshape(rows, in_features)


def grouped(weights: Tensor, scales: Scales) -> Tensor:
    """View (out, in) as (out, groups, group_size)."""
    return weights.view(*scales.scale.shape, -1)


def to_weights(q: Tensor, scales: Scales) -> Tensor:
    """W = s * q - o in place of the integers `q` (out, in), and return it."""
    blocks = grouped(q, scales).mul_(scales.scale[:, :, None])
    if scales.offset is not None:
        blocks.sub_(scales.offset[:, :, None])
    return q


def to_latent(weights: Tensor, scales: Scales) -> Tensor:
    """(W + o) / s: where weights (out, in) lie among the integers; a new tensor."""
    blocks = grouped(weights.contiguous(), scales)
    if scales.offset is not None:
        blocks = blocks + scales.offset[:, :, None]
    return (blocks / scales.scale[:, :, None]).view(weights.shape)


def dequantize(q: Tensor, scales: Scales) -> Tensor:
    """The weights that a file means: float32 (out, in).

    Args:
        q: integers (out, in), any dtype.
        scales: stored scales and offsets, float32.
    """
    return to_weights(q.to(torch.float32, copy=True), scales)
