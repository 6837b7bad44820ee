import numpy as np
import pytest
import torch

from lrqat.grid import GRIDS, find_grid
from lrqat.quantize import integers, per_weight, stored_scale
from lrqat.range_init import RANGE_INITS


def quantised_error(weight, scale, grid, p=4.0):
    expanded = per_weight(scale, weight.shape[1])
    error = (integers(weight / expanded, grid) * expanded - weight).abs().pow(p)
    return error.reshape(len(weight), grid.groups(weight.shape[1]), -1).sum(-1)


@pytest.fixture
def weight():
    torch.manual_seed(1)
    return torch.randn(16, 256) * torch.logspace(-3, 1, 16)[:, None]


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_min_max_covers_the_weights(weight, grid):
    scale = RANGE_INITS["minmax"](weight, grid, 4.0)
    latent = weight / per_weight(scale, 256)
    # Half a step past the last level still rounds to it; fp16 rounding moves it by 2^-11 at most.
    assert latent.min() > grid.q_min - 0.5
    # The signed-max rule gives the larger side 8 levels and may clip the smaller one's last.
    assert latent.max() < grid.q_max + (1.01 if grid.signed_scale else 0.5)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_lp_search_is_never_worse_than_min_max_in_any_group(weight, grid):
    covering = quantised_error(weight, RANGE_INITS["minmax"](weight, grid, 4.0), grid)
    searched = quantised_error(weight, RANGE_INITS["lp"](weight, grid, 4.0), grid)
    assert (searched <= covering * (1 + 1e-5)).all()
    if grid.bits == 4:
        assert (searched / covering).mean() < 0.95


def test_signed_max_is_llama_cpps_rule(weight):
    """ggml's own quantiser takes d = (weight of largest magnitude) / -8."""
    import gguf

    scale = RANGE_INITS["minmax"](weight, find_grid("q4_0"), 4.0)
    blocks = gguf.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q4_0).reshape(16, 8, 18)
    theirs = blocks[..., :2].copy().view(np.float16)[..., 0]
    assert np.array_equal(scale.numpy().astype(np.float16), theirs)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_stored_scales_are_exact_finite_and_never_zero(grid):
    awkward = torch.tensor([[0.0, 1e-30, -1e-30, 1e30, -1e30, 6e-8, 1 / 3, -1 / 3, 65520.0]])
    scale = stored_scale(awkward, grid)
    assert torch.equal(scale, scale.half().float())
    assert torch.isfinite(scale).all()
    assert (scale != 0).all()
    assert grid.signed_scale or (scale > 0).all()
    assert torch.isnan(stored_scale(torch.tensor([[float("nan")]]), grid)).all()


@pytest.mark.parametrize("init", RANGE_INITS)
def test_a_group_of_zeros_gets_a_scale_that_can_be_stored(init):
    scale = RANGE_INITS[init](torch.zeros(2, 64), find_grid("q4_0"), 4.0)
    assert (scale != 0).all()
    assert torch.isfinite(scale).all()
