"""The thin gradients against plain autograd, in float64."""

import pytest
import torch

from lrqat.grids.grid import GRIDS
from lrqat.grids.quantize import inside
from lrqat.layers import per_row
from tests.support.plain_layer import make_layer, nearest, plain_forward, ste

PER_CHANNEL = [name for name, grid in GRIDS.items() if grid.group_size is None]


@pytest.fixture
def taken(monkeypatch):
    """List with an entry for every backward pass that took the thin path."""
    calls, real = [], per_row.add_gradients
    monkeypatch.setattr(per_row, "add_gradients", lambda *given: calls.append(1) or real(*given))
    return calls


@pytest.fixture
def always(monkeypatch):
    """However much is clipped."""
    monkeypatch.setattr(per_row, "MOST_CLIPPED", 1.0)


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


def close(ours, expected):
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def unclipped_forward(layer, x):
    """`plain_forward`, where the gradient of A and B does not stop at what is clipped."""
    latent = layer.downcast.decode(layer.phi, layer.grid, layer.in_features, torch.float64)
    latent = latent + layer.scaling * layer.lora_a @ layer.lora_b
    q = ste(nearest(latent, layer.grid), latent)
    scale = ste(layer.stored().scale, layer.scale)
    zero = 0 if layer.zero_point is None else layer.zero_point
    return x @ (scale * (q - zero)).T + (0 if layer.bias is None else layer.bias)


@pytest.mark.parametrize("grid", PER_CHANNEL)
def test_gradients_pass_through_what_is_clipped(grid, taken, always):
    layer = double(make_layer(grid, bias=True)[1])
    assert (~inside(layer.latent(slice(None)), layer.grid)).sum() > 10
    x, upstream = inputs(layer)
    ours = gradients(layer, layer, x, upstream)
    assert taken == [1]
    close(ours, gradients(layer, lambda value: unclipped_forward(layer, value), x, upstream))
    # Of y, x and the scales alone, exactly what clipping gives.
    plain = gradients(layer, lambda value: plain_forward(layer, value), x, upstream)
    exact = [0, 1, 2 + list(layer.trained()).index("scale")]
    close([ours[i] for i in exact], [plain[i] for i in exact])


def unclipped_layer():
    layer = double(make_layer("int8-channel")[1])
    layer.lora_a.data.zero_()
    layer.phi.data.clamp_(-127, 127)
    return layer


def test_nothing_clipped(taken):
    layer = unclipped_layer()
    x, upstream = inputs(layer)
    ours = gradients(layer, layer, x, upstream)
    plain = gradients(layer, lambda value: plain_forward(layer, value), x, upstream)
    assert taken == [1]
    close(ours, plain)


def test_too_many_clipped_entries_take_the_dense_path(taken):
    layer = double(make_layer("int4-channel")[1])
    x, upstream = inputs(layer)
    gradients(layer, layer, x, upstream)
    assert taken == []


@pytest.mark.parametrize(
    "grid", ["q4_0", "q4_1", *(g for g in PER_CHANNEL if GRIDS[g].levels is not None)]
)
def test_other_grids_do_not_keep_the_output(grid, taken):
    layer = double(make_layer(grid)[1])
    assert not per_row.suits(layer)
    x, upstream = inputs(layer)
    gradients(layer, layer, x, upstream)
    assert taken == []


def test_an_output_changed_in_place_takes_the_dense_path(taken, always):
    layer = double(make_layer("int4-channel", bias=False)[1])
    x, upstream = inputs(layer)
    changed = gradients(layer, lambda value: layer(value).mul_(0.5), x, upstream)
    assert taken == []
    plain = gradients(layer, lambda value: 0.5 * plain_forward(layer, value), x, upstream)
    close(changed, plain)


def test_a_second_backward_gives_the_same(taken):
    layer = unclipped_layer()
    x, upstream = inputs(layer)
    y = layer(x)
    wanted = list(layer.trained().values())
    first = torch.autograd.grad(y, wanted, upstream, retain_graph=True)
    second = torch.autograd.grad(y, wanted, upstream)
    assert taken == [1]
    close(first, second)


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


def test_frozen_scales_and_frozen_low_rank_matrices(taken, always):
    for frozen in (["scale"], ["lora_a", "lora_b"]):
        layer = double(make_layer("int4-channel")[1])
        for name in frozen:
            getattr(layer, name).requires_grad_(False)
        x, upstream = inputs(layer)
        ours = gradients(layer, layer, x, upstream)
        close(
            ours,
            gradients(layer, lambda value, own=layer: unclipped_forward(own, value), x, upstream),
        )
    assert taken == [1, 1]
