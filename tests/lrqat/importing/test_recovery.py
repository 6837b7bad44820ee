"""Integers and scales of weights that were multiplied out and rounded: those that they were."""

import dataclasses

import numpy as np
import pytest
import torch

from lrqat.grids.grid import GRIDS, FloatScale
from lrqat.importing import search
from lrqat.importing.recovery import is_recoverable, recover
from tests.support.grids import KINDS_OF_GRIDS
from tests.support.imported import by_gguf
from tests.support.random_tensors import make

TYPES = (torch.float32, torch.float16, torch.bfloat16)
NAMES = [name for name in (*KINDS_OF_GRIDS, "int4-asym-g32") if is_recoverable(GRIDS[name])]
# Where bfloat16 is coarser than the grid's steps, or a few groups have several answers.
NOT_ALWAYS = ("int8-asym-channel", "q4_1", "nvfp4")


def made_on(grid, rows=8, columns=512):
    """A tensor with scales as models have them and integers around the middle."""
    rng = np.random.default_rng(0)
    tensor = make(grid, rows, columns)
    levels = np.array(grid.levels or range(grid.q_min, grid.q_max + 1))
    about = rng.normal((grid.q_min + grid.q_max) / 2, (grid.q_max - grid.q_min) / 6, tensor.q.shape)
    q = levels[np.abs(about[..., None] - levels).argmin(-1)].astype(np.int8)
    scales = tensor.scales
    if isinstance(grid.scale, FloatScale):
        scale = rng.uniform(0.001, 0.01, scales.scale.shape) * np.sign(scales.scale)
        new = {"scale": scale.astype(np.float16).astype(np.float32)}
        if grid.minimum:
            new["minimum"] = (7.3 * scale).astype(np.float16).astype(np.float32)
        scales = dataclasses.replace(scales, **new)
    else:  # far from the ends of the types that weights are rounded to; all integers occur
        q = tensor.q
        scales = dataclasses.replace(scales, **_moderate(rng, scales))
    return dataclasses.replace(tensor, q=q, scales=scales)


def _moderate(rng, scales):
    """Scales of about a thousandth, in the place of those of every size."""
    if scales.super_scale is not None:
        top = rng.integers(128, 256, scales.super_scale.shape).astype(np.float32) * 2.0**-18
        sub = scales.sub_scale
        return {"super_scale": top, "scale": top.repeat(sub.shape[1] // top.shape[1], 1) * sub}
    if scales.tensor_scale is not None:
        unit = np.float32(2.0**-14)
        of_groups = scales.scale / scales.tensor_scale
        return {"scale": of_groups * unit, "tensor_scale": np.full_like(scales.tensor_scale, unit)}
    return {"scale": np.exp2(rng.integers(-10, 3, scales.scale.shape)).astype(np.float32)}


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_of_a_grid_comes_back_from_its_products(name):
    grid = GRIDS[name]
    tensor = made_on(grid)
    weights = torch.from_numpy(tensor.dequantize())
    for dtype in (torch.float32, torch.bfloat16):
        rounded = weights.to(dtype)
        found = recover("x", rounded, grid)
        again = torch.from_numpy(found.tensor.dequantize()).to(dtype)
        share = float((again == rounded).double().mean())
        assert share == found.share
        assert share > 0.99 if name in NOT_ALWAYS else share == 1


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4"])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_integers_are_those_of_ggufs_own_quantizer(name, dtype):
    torch.manual_seed(1)
    levels, weights = by_gguf(torch.randn(32, 512) / 20, name)
    found = search.find("x", weights.to(dtype))
    assert found.is_exact
    assert found.grid is not None
    assert found.grid.name == name
    assert np.array_equal(found.recovered.tensor.q, levels)


def test_one_weight_that_is_off_is_told():
    _, weights = by_gguf(torch.randn(16, 256), "q4_0")
    weights[3, 77] += 0.01
    found = search.find("x", weights)
    assert not found.is_exact
    assert found.grid.name == "q4_0"
    assert 0.99 < found.share < 1
    assert found.difference > 0


def test_weights_of_a_usual_model_are_on_no_grid():
    torch.manual_seed(0)
    found = search.find("x", torch.randn(32, 512).bfloat16())
    assert not found.is_exact
    assert 0 < found.share < 0.9


def test_of_the_grids_that_fit_the_smallest_is_taken():
    for name in ("int4-g128", "int4-channel", "q2_0", "int3-asym-g64"):
        weights = torch.from_numpy(made_on(GRIDS[name]).dequantize()).bfloat16()
        assert search.find("x", weights).grid.name == name


def test_zeros_and_groups_of_one_value_are_on_the_grid():
    weights = torch.zeros(4, 64)
    weights[1] = 0.25
    weights[2, :3] = torch.tensor([0.5, -0.5, 0.25])
    found = recover("x", weights.bfloat16(), GRIDS["q4_0"])
    assert found.share == 1
    assert np.isfinite(found.tensor.scale).all()
    assert (found.tensor.scale != 0).all()
