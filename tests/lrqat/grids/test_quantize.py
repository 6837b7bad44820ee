"""Rounding to a codebook: the table of halves against a search among the borders."""

import pytest
import torch

from lrqat.grids.grid import GRIDS
from lrqat.grids.quantize import integers


@pytest.mark.parametrize("grid", [g for g in GRIDS.values() if g.levels], ids=lambda g: g.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_nearest_level_is_that_of_a_search_among_the_borders(grid, dtype):
    levels = torch.tensor(grid.levels, dtype=dtype)
    borders = (levels[1:] + levels[:-1]) / 2
    halves = torch.arange(-600, 600) / 2
    near = [torch.nextafter(halves, halves + side) for side in (-1, 1)]
    values = torch.cat([halves, *near, torch.randn(1000) * grid.q_max, torch.tensor([1e30, -1e30])])
    values = values.to(dtype).reshape(1, -1)
    assert torch.equal(integers(values.clone(), grid), levels[torch.bucketize(values, borders)])
