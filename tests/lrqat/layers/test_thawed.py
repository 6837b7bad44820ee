"""Weights whose every entry is trained, and what becomes of them when they are frozen again."""

import pytest
import torch

from lrqat.grids.grid import find_grid
from lrqat.grids.quantize import integers, to_weights, where_inside
from lrqat.init.range_init import find_scales
from lrqat.layers.frozen import DOWNCASTS
from lrqat.layers.linear import LRQATLinear

GRIDS = ["q2_0", "q4_0", "iq4_nl", "q4_1", "q4_k", "int4-channel"]


def layer_on(name, phi="fp32"):
    torch.manual_seed(0)
    weight = torch.randn(16, 256) / 8
    grid = find_grid(name)
    scales = find_scales(weight, grid, "l2")
    downcast = DOWNCASTS[phi]
    return LRQATLinear(weight, scales, grid=grid, downcast=downcast, rank=4, alpha=64.0)


def straight_through(layer, latent):
    """W as autograd would differentiate it: integers pass the gradient where nothing is clipped."""
    rounded = integers(latent.detach().clone(), layer.grid)
    passed = where_inside(torch.ones_like(latent), latent.detach(), layer.grid)
    q = rounded + (latent - latent.detach()) * passed
    with torch.no_grad():
        stored = layer.stored()
    groups = stored.scale.shape[1]
    offset = 0.0 if stored.offset is None else stored.offset[:, :, None]
    return (q.view(len(q), groups, -1) * stored.scale[:, :, None] - offset).view_as(q)


@pytest.mark.parametrize("name", GRIDS)
def test_thawing_changes_no_output_and_gradients_are_those_of_autograd(name):
    layer, x = layer_on(name), torch.randn(8, 256)
    with torch.no_grad():
        layer.lora_a.normal_(std=0.02)
    before = layer(x)
    layer.thaw()
    torch.testing.assert_close(layer(x), before)
    y = layer(x)
    y.square().sum().backward()
    latent = layer.phi.detach().clone().requires_grad_()
    (x @ straight_through(layer, latent).T).square().sum().backward()
    torch.testing.assert_close(layer.phi.grad, latent.grad, rtol=1e-3, atol=1e-4)
    assert layer.scale.grad.abs().sum() > 0
    assert layer.lora_a.grad is None


@pytest.mark.parametrize("phi", ["fp32", "bf16", "fixed", "int"])
def test_frozen_again_it_has_the_integers_it_had_and_starts_from_them(phi):
    layer = layer_on("q4_0")
    layer.thaw()
    with torch.no_grad():
        layer.phi += torch.randn_like(layer.phi)
        layer.scale *= 1.1
    integers_then = layer.integers()
    assert (integers_then != layer_on("q4_0").integers()).float().mean() > 0.2
    layer.freeze(DOWNCASTS[phi])
    assert torch.equal(layer.integers(), integers_then)
    assert torch.equal(layer.latent(slice(None)), integers_then.float())
    assert torch.equal(layer.integers(), layer.start_integers())
    assert not layer.lora_a.any()
    assert not layer.keeps_original
    assert set(layer.trained()) == {"lora_a", "lora_b", "scale"}
    assert not layer.phi.requires_grad
    expected = to_weights(layer.integers().float(), layer.stored())
    torch.testing.assert_close(layer(torch.eye(256)).T, expected)
