"""The layer against a plain autograd formulation of the same expression, in float64."""

import pytest
import torch
from torch import nn

from lrqat.downcast import DOWNCASTS
from lrqat.grid import GRIDS
from lrqat.layer import LRQATLinear
from lrqat.quantize import dequantize, integers, per_weight, stored_scale
from lrqat.range_init import RANGE_INITS


def make_layer(grid_name, *, columns=256, rows=24, phi="fp32", bias=True, rank=4, trained=True):
    torch.manual_seed(0)
    grid = GRIDS[grid_name]
    linear = nn.Linear(columns, rows, bias=bias)
    scale = RANGE_INITS["lp"](linear.weight, grid, 4.0)
    layer = LRQATLinear.from_linear(
        linear, scale, grid=grid, downcast=DOWNCASTS[phi], rank=rank, alpha=8.0
    )
    if trained:  # large enough that many integers move and some entries clip
        nn.init.normal_(layer.lora_a, std=grid.q_max)
        layer.scale.data.mul_(torch.empty_like(layer.scale).uniform_(0.6, 1.4))
    return linear, layer


def ste(rounded, exact):
    return exact + (rounded - exact).detach()


def plain_forward(layer, x):
    """The same expression with ordinary autograd operations and straight-through rounding."""
    grid = layer.grid
    phi = layer.downcast.decode(layer.phi, grid, torch.float64)
    latent = phi + layer.scaling * layer.lora_a @ layer.lora_b
    q = ste(latent.round(), latent).clamp(grid.q_min, grid.q_max)
    scale = ste(stored_scale(layer.scale, grid), layer.scale)
    y = x @ (q * per_weight(scale, layer.in_features)).T
    return y if layer.bias is None else y + layer.bias


@pytest.mark.parametrize("phi", DOWNCASTS)
@pytest.mark.parametrize("grid", GRIDS)
def test_gradients_equal_plain_autograd(grid, phi):
    _, layer = make_layer(grid, phi=phi)
    for name in ("lora_a", "lora_b", "scale"):
        getattr(layer, name).data = getattr(layer, name).data.double()
    layer.bias = layer.bias.double()
    q = layer.latent(layer.phi, layer.lora_a, layer.lora_b).round()
    clipped = (q < layer.grid.q_min) | (q > layer.grid.q_max)
    if layer.grid.bits == 4:
        assert 0.001 < clipped.double().mean() < 0.9, "the test must exercise clipping"
    parameters = [layer.lora_a, layer.lora_b, layer.scale]
    x = torch.randn(3, 5, layer.in_features, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(3, 5, layer.out_features, dtype=torch.float64)
    results = []
    for forward in (layer, lambda value: plain_forward(layer, value)):
        y = forward(x)
        results.append([y, *torch.autograd.grad(y, [x, *parameters], upstream)])
    for ours, plain in zip(*results, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_row_blocks_do_not_change_the_result(monkeypatch):
    _, layer = make_layer("q4_0")
    x = torch.randn(7, layer.in_features, requires_grad=True)
    results = []
    for block in (1 << 22, 256 * 5):
        monkeypatch.setattr("lrqat.layer._BLOCK_WEIGHTS", block)
        y = layer(x)
        inputs = [x, layer.lora_a, layer.lora_b, layer.scale]
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for whole, blocked in zip(*results, strict=True):
        torch.testing.assert_close(whole, blocked, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", GRIDS)
def test_step_zero_is_round_to_nearest(grid):
    linear, layer = make_layer(grid, trained=False)
    scale = layer.stored_scale()
    assert torch.equal(scale, layer.scale.detach()), "the start scale is exact as stored"
    q = integers(linear.weight.detach() / per_weight(scale, layer.in_features), layer.grid)
    x = torch.randn(2, layer.in_features)
    assert torch.equal(q, layer.integers().float())
    assert torch.equal(layer.integers(), layer.start_integers())
    expected = nn.functional.linear(x, dequantize(q, scale)) + linear.bias
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("phi", DOWNCASTS)
def test_what_is_fused_is_what_was_computed(phi):
    _, layer = make_layer("q4_0", phi=phi, bias=False)
    eye = torch.eye(layer.in_features)
    assert torch.equal(layer(eye).T, dequantize(layer.integers(), layer.stored_scale()))


@pytest.mark.parametrize("grid", GRIDS)
def test_fixed_point_downcast_moves_no_weight_by_more_than_its_resolution(grid):
    exact = make_layer(grid, phi="fp32", trained=False)[1]
    fixed = make_layer(grid, phi="fixed", trained=False)[1]
    limits = (exact.grid.q_min, exact.grid.q_max)
    error = (fixed.latent(fixed.phi, fixed.lora_a, fixed.lora_b) - exact.phi.clamp(*limits)).abs()
    assert fixed.phi.dtype == torch.int8
    assert error.max() <= 2.0 ** -(8 - exact.grid.bits) / 2 + 1e-6


def test_nothing_large_is_kept_between_forward_and_backward():
    _, layer = make_layer("q4_0", rows=64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(3, layer.in_features, requires_grad=True))
    own = {layer.phi.data_ptr(), layer.lora_a.data_ptr(), layer.lora_b.data_ptr()}
    others = [t for t in kept if t.data_ptr() not in own and t.numel() >= layer.phi.numel()]
    assert not others


def test_bf16_compute_keeps_fp32_masters_and_small_steps_move_scales():
    _, layer = make_layer("q4_0")
    x = torch.randn(4, layer.in_features, dtype=torch.bfloat16)
    y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().square().mean().backward()
    before = layer.scale.detach().clone()
    torch.optim.AdamW([layer.scale], lr=1e-5).step()
    assert layer.scale.dtype == torch.float32
    assert (layer.scale != before).float().mean() > 0.9


def test_autocast_runs_the_matmul_in_bf16_with_the_same_integers():
    _, layer = make_layer("q4_0")
    x = torch.randn(4, layer.in_features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x.bfloat16()).float(), rtol=0.02, atol=0.02)
