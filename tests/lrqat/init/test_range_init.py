import numpy as np
import pytest
import torch

from lrqat.grids.grid import (
    GRIDS,
    Float8Scale,
    FloatScale,
    PowerOfTwoScale,
    TwoLevelScale,
    find_grid,
)
from lrqat.grids.quantize import Scales, dequantize, integers, stored_scale, to_latent
from lrqat.init.range_init import find_scales
from lrqat.init.starts import RANGE_INITS, RangeInit
from tests.support.grids import KINDS_OF_GRIDS


def quantised_error(weight, ranges, grid, p=2.0, factors=None):
    q = integers(to_latent(weight, ranges), grid)
    error = (dequantize(q, ranges) - weight).abs().pow(p)
    error = error if factors is None else error * factors
    return error.reshape(len(weight), grid.groups(weight.shape[1]), -1).sum(-1)


@pytest.fixture
def weight():
    torch.manual_seed(1)
    return torch.randn(16, 256) * torch.logspace(-3, 1, 16)[:, None]


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_min_max_covers_the_weights(weight, grid):
    if isinstance(grid.scale, TwoLevelScale | PowerOfTwoScale | Float8Scale):
        pytest.skip("rounding moves these scales by more than half a step")
    latent = to_latent(weight, find_scales(weight, grid, "minmax"))
    gap = 1 if grid.levels is None else grid.levels[-1] - grid.levels[-2]
    # Half a step past the last level still rounds to it; fp16 rounding moves it by 2^-11 at most.
    assert latent.min() > grid.q_min - 0.55
    # The signed-max rule gives the larger side more levels and may clip the smaller one's last.
    longer = -grid.q_min - grid.q_max if grid.signed_scale else 0
    assert latent.max() < grid.q_max + max(longer, gap) + 0.5


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_lp_search_is_never_worse_than_min_max_in_any_group(weight, grid):
    covering = quantised_error(weight, find_scales(weight, grid, "minmax"), grid)
    searched = quantised_error(weight, find_scales(weight, grid, "l2"), grid)
    if isinstance(grid.scale, TwoLevelScale):  # a group pays for what its super-block gains
        covering, searched = covering.sum(1), searched.sum(1)
    assert (searched <= covering * (1 + 1e-5)).all()
    if grid.bits <= 4 and grid.name != "mxfp4":
        assert (searched / covering).mean() < 0.95


@pytest.mark.parametrize("name", ["q4_0", "q2_k", "q3_k", "int3-asym-g64"])
def test_importance_moves_error_to_the_channels_that_matter_least(weight, name):
    grid, factors = GRIDS[name], torch.logspace(-2, 2, 256)[torch.randperm(256)]
    plain = quantised_error(weight, find_scales(weight, grid, "l2"), grid, factors=factors)
    ranges = find_scales(weight, grid, "importance", factors)
    weighted = quantised_error(weight, ranges, grid, factors=factors)
    assert weighted.sum() < 0.97 * plain.sum()


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("init", ["minmax", "l2"])
def test_what_was_stored_is_stored_again_unchanged(weight, grid, init):
    ranges = find_scales(weight, grid, init)
    for ours, again in zip(ranges.parts(), ranges.stored(grid, 256).parts(), strict=True):
        assert (ours is None and again is None) or torch.equal(ours, again)


def test_signed_max_is_llama_cpps_rule(weight):
    """ggml's own quantiser takes d = (weight of largest magnitude) / -8."""
    import gguf

    scale = find_scales(weight, find_grid("q4_0"), "minmax").scale
    blocks = gguf.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q4_0).reshape(16, 8, 18)
    theirs = blocks[..., :2].copy().view(np.float16)[..., 0]
    assert np.array_equal(scale.numpy().astype(np.float16), theirs)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_stored_scales_are_exact_finite_and_never_zero(grid):
    awkward = torch.tensor([[0.0, 1e-30, -1e-30, 1e30, -1e30, 6e-8, 1 / 3, -1 / 3, 65520.0]])
    awkward = awkward.repeat(1, 16)[:, : 128 // 8]
    scale = stored_scale(awkward, grid, 16 * (grid.group_size or 16))
    if isinstance(grid.scale, FloatScale):
        assert torch.equal(scale, scale.half().float())
    assert torch.isfinite(scale).all()
    assert (scale != 0).all()
    assert grid.signed_scale or (scale > 0).all()
    assert torch.isnan(stored_scale(torch.full((1, 16), torch.nan), grid, 256)).all()


@pytest.mark.parametrize("init", RANGE_INITS)
@pytest.mark.parametrize("grid", KINDS_OF_GRIDS)
def test_a_group_of_zeros_gets_a_scale_that_can_be_stored(init, grid):
    ranges = find_scales(torch.zeros(2, 256), GRIDS[grid], init)
    assert (ranges.scale != 0).all()
    assert all(torch.isfinite(part).all() for part in ranges.parts() if part is not None)
    if GRIDS[grid].levels and 0 not in GRIDS[grid].levels:
        return  # the nearest level to zero is not zero
    assert not dequantize(
        integers(to_latent(torch.zeros(2, 256), ranges), GRIDS[grid]), ranges
    ).any()


def test_a_start_of_ones_own_is_a_function_of_the_weight_its_grid_and_the_importance(weight):
    """Halves of min-max, on channels that are all equally important."""
    seen = []

    def halved(rows, grid, importance):
        seen.append(importance)
        return Scales(RANGE_INITS["minmax"].find(rows, grid, importance).scale / 2)

    grid, importance = GRIDS["int4-g32"], torch.ones(256)
    ours = find_scales(weight, grid, RangeInit("half", halved), importance)
    assert torch.equal(2 * ours.scale, find_scales(weight, grid, "minmax").scale)
    find_scales(weight, grid, RangeInit("half", halved, weighted=True), importance)
    assert seen[0] is None, "nobody asked for the importance"
    assert seen[1] is importance
