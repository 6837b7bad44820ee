"""The layer against a plain autograd formulation of the same expression, in float64."""

import pytest
import torch
from torch import nn

from lrqat.grids.grid import GRIDS
from lrqat.grids.quantize import dequantize, inside, integers, per_weight, to_latent
from lrqat.init.range_init import find_scales
from lrqat.layers import weight
from lrqat.layers.frozen import DOWNCASTS
from lrqat.layers.linear import LRQATLinear
from lrqat.layers.modes import full_precision
from tests.support.grids import KINDS_OF_GRIDS
from tests.support.plain_layer import make_layer, plain_forward

CASES = [("fp32", grid) for grid in GRIDS] + [
    (phi, grid)
    for phi, downcast in DOWNCASTS.items()
    for grid in KINDS_OF_GRIDS
    if phi != "fp32" and not downcast.refuses(GRIDS[grid])
]


@pytest.mark.parametrize(("phi", "grid"), CASES)
def test_gradients_equal_plain_autograd(grid, phi, monkeypatch):
    # The dense path, also for one scale a row; test_per_row.py has the other.
    monkeypatch.setattr("lrqat.layers.per_row.MOST_CLIPPED", -1.0)
    _, layer = make_layer(grid, phi=phi)
    parameters = list(layer.trained().values())
    for parameter in parameters:
        parameter.data = parameter.data.double()
    if layer.zero_point is not None:
        layer.zero_point = layer.zero_point.double()
    layer.bias = layer.bias.double()
    clipped = ~inside(layer.latent(slice(None)), layer.grid)
    if layer.grid.bits == 4:
        assert 0.001 < clipped.double().mean() < 0.9, "the test must exercise clipping"
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
        monkeypatch.setattr("lrqat.layers.weight.BLOCK_WEIGHTS", block)
        y = layer(x)
        inputs = [x, layer.lora_a, layer.lora_b, layer.scale]
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for whole, blocked in zip(*results, strict=True):
        torch.testing.assert_close(whole, blocked, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", ["q4_0", "q3_k", "int8-asym-g32", "int4-channel"])
def test_a_and_b_change_the_weights_by_their_product(grid):
    """In mean steps of the row, whatever the sizes and signs of its scales."""
    _, layer = make_layer(grid, columns=512, rows=96)
    start = layer.start_scales().scale
    layer.scale.data.copy_(start)
    layer.lora_a.data.normal_(std=3e-2)
    before = layer.downcast.decode(layer.phi, layer.grid, 512, torch.float32)
    in_steps = layer.latent(slice(None)) - before
    change = in_steps * per_weight(start, 512)
    step = start.abs().mean(1, keepdim=True) if layer.unit is not None else start
    expected = step * layer.scaling * (layer.lora_a @ layer.lora_b)
    torch.testing.assert_close(change, expected, rtol=1e-2, atol=1e-6)
    assert torch.linalg.matrix_rank(expected) == layer.lora_b.shape[0]
    if layer.grid.signed_scale and layer.unit is not None:
        assert (start < 0).any()
        assert (start > 0).any()


def test_the_unit_of_a_row_without_weights_is_finite():
    unit = weight._unit(torch.tensor([[0.0, 0.0], [1e-30, 1.0], [-0.5, 0.5]]))
    assert unit.tolist() == [[1.0, 1.0], [8.0, 0.5], [-1.0, 1.0]]


@pytest.mark.parametrize("grid", GRIDS)
def test_step_zero_is_round_to_nearest(grid):
    linear, layer = make_layer(grid, trained=False)
    stored = layer.stored()
    assert torch.equal(stored.scale, layer.scale), "the start scale is exact as stored"
    q = integers(to_latent(linear.weight.detach(), stored), layer.grid)
    x = torch.randn(2, layer.in_features)
    assert torch.equal(q, layer.integers().float())
    assert torch.equal(layer.integers(), layer.start_integers())
    expected = nn.functional.linear(x, dequantize(q, stored)) + linear.bias
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("grid", GRIDS)
def test_packed_integers_are_the_start_integers_in_b_eighths_of_a_byte(grid):
    packed = make_layer(grid, phi="int", trained=False, columns=512)[1]
    exact = make_layer(grid, phi="fp32", trained=False, columns=512)[1]
    assert torch.equal(packed.latent(slice(None)).to(torch.int8), exact.integers())
    assert packed.phi.nbytes == packed.out_features * 512 * packed.grid.bits / 8


@pytest.mark.parametrize("grid", KINDS_OF_GRIDS)
def test_the_full_precision_weights_come_back_exactly(grid):
    linear, layer = make_layer(grid)
    x = torch.randn(3, layer.in_features)
    with full_precision(layer):
        y = layer(x)
    torch.testing.assert_close(y, linear(x), rtol=1e-5, atol=1e-6)
    bf16 = nn.Linear(256, 8, bias=False, dtype=torch.bfloat16)
    ranges = find_scales(bf16.weight, layer.grid, "lp")
    settings = {"grid": layer.grid, "downcast": DOWNCASTS["fp32"], "rank": 2, "alpha": 1.0}
    again = LRQATLinear.from_linear(bf16, ranges, **settings)
    assert torch.equal(again.original(torch.empty(8, 256)), bf16.weight.float())


@pytest.mark.parametrize("phi", DOWNCASTS)
def test_what_is_fused_is_what_was_computed(phi):
    _, layer = make_layer("q4_0", phi=phi, bias=False)
    eye = torch.eye(layer.in_features)
    assert torch.equal(layer(eye).T, dequantize(layer.integers(), layer.stored()))


@pytest.mark.parametrize("grid", [g for g in GRIDS if not DOWNCASTS["fixed"].refuses(GRIDS[g])])
def test_fixed_point_downcast_moves_no_weight_by_more_than_its_resolution(grid):
    exact = make_layer(grid, phi="fp32", trained=False)[1]
    fixed = make_layer(grid, phi="fixed", trained=False)[1]
    limits = (exact.grid.q_min, exact.grid.q_max)
    error = (fixed.latent(slice(None)) - exact.phi.clamp(*limits)).abs()
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
