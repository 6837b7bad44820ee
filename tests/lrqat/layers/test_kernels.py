"""The compiled passes over a weight give what the plain ones give (compiled for the CPU here)."""

import shutil

import pytest
import torch

from lrqat.grids.grid import GRIDS
from lrqat.init.range_init import find_scales
from lrqat.layers import kernels
from lrqat.layers.frozen import DOWNCASTS
from lrqat.layers.linear import LRQATLinear

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler for Inductor")


@pytest.fixture(params=["q3_k", "q2_k", "int4-asym-g64", "iq4_nl"])
def layer(request):
    torch.manual_seed(0)
    grid = GRIDS[request.param]
    linear = torch.nn.Linear(512, 24, bias=False)
    settings = {"grid": grid, "downcast": DOWNCASTS["fp32"], "rank": 4, "alpha": 64.0}
    made = LRQATLinear.from_linear(linear, find_scales(linear.weight, grid, "minmax"), **settings)
    torch.nn.init.normal_(made.lora_a, std=0.5)  # so that some weights move, and some are clipped
    return made


def results(layer, x, upstream):
    y = layer(x)
    return [y, *torch.autograd.grad(y, [x, *layer.trained().values()], upstream)]


@pytest.mark.slow
def test_compiled_passes_give_the_same(layer, monkeypatch):
    x, upstream = torch.randn(7, 512, requires_grad=True), torch.randn(7, 24)
    plain = results(layer, x, upstream)
    latent = layer.latent(slice(None))
    weights = kernels.weights(latent.clone(), layer.stored(), layer.grid)
    compiled = []
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **k: compiled.append(f) or compile_(f, **k))
    monkeypatch.setattr(kernels, "_fuses", lambda tensor: True)
    kernels._fused.cache_clear()
    kept = latent.clone()
    fused = kernels.weights(latent, layer.stored(), layer.grid)
    assert torch.equal(latent, kept), "a compiled pass changes nothing in place"
    spread = layer.stored().scale.detach().abs().max()
    torch.testing.assert_close(fused, weights, rtol=0, atol=1e-6 * float(spread))
    for ours, expected in zip(results(layer, x, upstream), plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert len(compiled) == 2, "one kernel for the weights, one for the gradients"


def test_nothing_is_compiled_on_a_cpu(layer, monkeypatch):
    monkeypatch.setattr(torch, "compile", None)
    x = torch.randn(3, 512, requires_grad=True)
    assert all(torch.isfinite(part).all() for part in results(layer, x, torch.randn(3, 24)))
