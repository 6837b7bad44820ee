"""On which grid a matrix lies: of all that give every weight back, the one with the fewest bits.

Some rows tell which grids there is no point in trying: weights that are no multiples of anything by
8 bits are on no symmetric grid at all. Those that pass are tried on the whole matrix.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lrqat.grids.grid import GRIDS, Grid, ScaleCodec, TwoLevelScale
from lrqat.importing.offset import solve_offset
from lrqat.importing.recovery import Recovered, is_recoverable, recover
from lrqat.importing.rounded import KNOWN, Rounded
from lrqat.importing.scaled import Ladder, solve

_ROWS, _COLUMNS = 4, 1024  # of a sample; a multiple of every block
_FIRST = 8  # groups that are looked at first
_ATTEMPTS = 3  # at the whole matrix
# What is asked when nothing fits: how near the most usual ones come.
_USUAL = ("q4_0", "q4_1", "q8_0", "int4-channel")


@dataclass(frozen=True)
class Finding:
    """What is known of a matrix.

    Attributes:
        grid: the grid that every weight lies on, or the one that comes nearest; None: no grid has
            rows of this length.
        share: of the weights that are exact on it.
        difference: the largest difference from a weight.
        recovered: integers and scales, where the whole matrix was looked at.
    """

    grid: Grid | None
    share: float
    difference: float
    recovered: Recovered | None = None

    @classmethod
    def of(cls, found: Recovered) -> "Finding":
        """Of a whole matrix on one grid."""
        return cls(found.tensor.grid, found.share, found.difference, found)

    @property
    def is_exact(self) -> bool:
        """Whether every weight is given back."""
        return self.recovered is not None and self.recovered.exact == self.recovered.tensor.q.size


def find(name: str, weight: Tensor) -> Finding:
    """The grid of a matrix.

    Args:
        name: of the module.
        weight: (out, in) in the type that it is stored in.
    """
    if weight.dtype not in KNOWN:
        weight = weight.float()
    fitting = [grid for grid in _ordered(weight.shape[1]) if grid.refuses(weight.shape[1]) is None]
    best = Finding(None, 0.0, math.inf)
    attempts = 0
    for grid in fitting if _is_on_some(weight, fitting) else ():
        if not _passes(weight, grid):
            continue
        found = recover(name, weight, grid)
        best = max(best, Finding.of(found), key=lambda each: each.share)
        attempts += 1
        if best.is_exact or attempts == _ATTEMPTS:
            break
    if best.recovered is None:
        best = _nearest(name, weight, fitting)
    return best


def on(name: str, weight: Tensor, grid: Grid) -> Finding:
    """The whole matrix on one grid."""
    return Finding.of(recover(name, weight if weight.dtype in KNOWN else weight.float(), grid))


def _ordered(columns: int) -> list[Grid]:
    """Those that can be told from weights, the fewest bits first; of equals, llama.cpp's."""
    known = [g for g in GRIDS.values() if is_recoverable(g) and g.refuses(columns) is None]
    return sorted(known, key=lambda grid: grid.bits_per_weight(columns))


def _is_on_some(weight: Tensor, grids: list[Grid]) -> bool:
    """Whether any grid can be right: a symmetric one, one of 8 bits with zero-points, minima."""
    finest = [grid for grid in grids if grid.bits == 8 and grid.group_size == 16]
    if any(_solves(_sample(weight, grid), grid, None) for grid in finest):
        return True
    return any(_passes(weight, grid) for grid in grids if grid.minimum is not None)


def _nearest(name: str, weight: Tensor, grids: list[Grid]) -> Finding:
    """By a sample, of the usual grids."""
    best = Finding(None, 0.0, math.inf)
    for grid in grids:
        if grid.name in _USUAL:
            found = recover(name, _sample(weight, grid), grid)
            near = Finding(grid, min(found.share, 1 - 1 / weight.numel()), found.difference)
            best = max(best, near, key=lambda each: each.share)
    return best


def _passes(weight: Tensor, grid: Grid) -> bool:
    """Whether a sample of a few groups, and then of more, is on a grid."""
    sample = _sample(weight, grid)
    if isinstance(grid.scale, TwoLevelScale):
        return _solves(sample, grid, None) and recover("", sample, grid).share == 1
    return _solves(sample, grid, grid.scale)


def _solves(sample: Tensor, grid: Grid, codec: ScaleCodec | None) -> bool:
    size = grid.group_size or sample.shape[1]
    groups = Rounded(sample.float().reshape(-1, size), sample.dtype)
    return all(bool(_solvable(groups[part], grid, codec).all()) for part in _parts(groups))


def _solvable(groups: Rounded, grid: Grid, codec: ScaleCodec | None) -> Tensor:
    if grid.minimum is not None:
        return solve_offset(groups, grid)[0].exact
    return solve(groups, Ladder.of(grid, codec)).exact


def _parts(groups: Rounded) -> Iterator[slice]:
    yield slice(0, _FIRST)
    if len(groups.value) > _FIRST:
        yield slice(_FIRST, None)


def _sample(weight: Tensor, grid: Grid) -> Tensor:
    """Rows from all over the matrix, and where groups are shorter, a part of each."""
    rows = torch.linspace(0, len(weight) - 1, min(_ROWS, len(weight))).long()
    columns = weight.shape[1] if grid.block is None else min(_COLUMNS, weight.shape[1])
    if grid.block is not None:
        columns -= columns % grid.block
    return weight[rows, :columns]
