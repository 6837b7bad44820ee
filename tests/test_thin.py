"""The thin gradients against the dense ones and against plain autograd, in float64."""

import pytest
import torch
from test_layer import make_layer, plain_forward

from lrqat import layer as layer_module
from lrqat import thin
from lrqat.grid import GRIDS
from lrqat.quantize import inside

PER_CHANNEL = [name for name, grid in GRIDS.items() if grid.group_size is None]


@pytest.fixture
def taken(monkeypatch):
    """List of what `_thin_gradients` answered, call by call."""
    answers, real = [], layer_module._thin_gradients

    def spy(*arguments):
        weight = real(*arguments)
        answers.append(weight is not None)
        return weight

    monkeypatch.setattr(layer_module, "_thin_gradients", spy)
    return answers


def double(layer):
    for parameter in layer.trained().values():
        parameter.data = parameter.data.double()
    layer.zero_point = None if layer.zero_point is None else layer.zero_point.double()
    layer.bias = None if layer.bias is None else layer.bias.double()
    return layer


def gradients(layer, forward, x, upstream):
    y = forward(x)
    wanted = [x, *(p for p in layer.trained().values() if p.requires_grad)]
    return [y, *torch.autograd.grad(y, wanted, upstream)]


def inputs(layer):
    x = torch.randn(3, 5, layer.in_features, dtype=torch.float64, requires_grad=True)
    return x, torch.randn(3, 5, layer.out_features, dtype=torch.float64)


@pytest.mark.parametrize("grid", PER_CHANNEL)
def test_gradients_equal_plain_autograd_with_clipped_entries(grid, taken, monkeypatch):
    monkeypatch.setattr(thin, "ENTRIES_PER_CLIPPED", 1)
    layer = double(make_layer(grid, bias=True)[1])
    assert (~inside(layer.latent(slice(None)), layer.grid)).sum() > thin._CHUNK
    x, upstream = inputs(layer)
    ours = gradients(layer, layer, x, upstream)
    plain = gradients(layer, lambda value: plain_forward(layer, value), x, upstream)
    assert taken == [True]
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_nothing_clipped(taken):
    layer = double(make_layer("int8-channel")[1])
    layer.lora_a.data.zero_()
    layer.phi.data.clamp_(-127, 127)
    x, upstream = inputs(layer)
    ours = gradients(layer, layer, x, upstream)
    plain = gradients(layer, lambda value: plain_forward(layer, value), x, upstream)
    assert taken == [True]
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_too_many_clipped_entries_take_the_dense_path(taken):
    layer = double(make_layer("int4-channel")[1])
    x, upstream = inputs(layer)
    gradients(layer, layer, x, upstream)
    assert taken == [False]


@pytest.mark.parametrize(
    "grid", ["q4_0", "q4_1", *(g for g in PER_CHANNEL if GRIDS[g].levels is not None)]
)
def test_other_grids_do_not_keep_the_output(grid, taken):
    layer = double(make_layer(grid)[1])
    assert not thin.suits(layer)
    x, upstream = inputs(layer)
    gradients(layer, layer, x, upstream)
    assert taken == []


def test_an_output_changed_in_place_takes_the_dense_path(taken, monkeypatch):
    monkeypatch.setattr(thin, "ENTRIES_PER_CLIPPED", 1)
    layer = double(make_layer("int4-channel", bias=False)[1])
    x, upstream = inputs(layer)
    changed = gradients(layer, lambda value: layer(value).mul_(0.5), x, upstream)
    assert taken == []
    plain = gradients(layer, lambda value: 0.5 * plain_forward(layer, value), x, upstream)
    for one, other in zip(changed, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_second_backward_gives_the_same(taken, monkeypatch):
    monkeypatch.setattr(thin, "ENTRIES_PER_CLIPPED", 1)
    layer = double(make_layer("int4-channel")[1])
    x, upstream = inputs(layer)
    y = layer(x)
    wanted = list(layer.trained().values())
    first = torch.autograd.grad(y, wanted, upstream, retain_graph=True)
    second = torch.autograd.grad(y, wanted, upstream)
    assert taken == [True]
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_checkpointing_keeps_no_output():
    layer = make_layer("int8-channel", rows=64, bias=False)[1]
    x = torch.randn(4, layer.in_features, requires_grad=True)
    kept = []

    def outer(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(outer, lambda tensor: tensor):
        torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert (4, 64) not in kept


def test_frozen_scales_and_frozen_low_rank_matrices(taken, monkeypatch):
    monkeypatch.setattr(thin, "ENTRIES_PER_CLIPPED", 1)
    for frozen in (["scale"], ["lora_a", "lora_b"]):
        layer = double(make_layer("int4-channel")[1])
        for name in frozen:
            getattr(layer, name).requires_grad_(False)
        x, upstream = inputs(layer)
        ours = gradients(layer, layer, x, upstream)
        plain = gradients(layer, lambda value, own=layer: plain_forward(own, value), x, upstream)
        for one, other in zip(ours, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert taken == [True, True]
