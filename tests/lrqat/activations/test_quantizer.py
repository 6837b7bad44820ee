"""Rounded activations of real models: hooks, what they say of themselves, measured ranges."""

import copy
import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lrqat.activations.grids import ActivationRange, quantize, range_of
from lrqat.activations.quantizer import (
    ActivationQuantizer,
    attach,
    attach_described,
    describe,
    detach,
    quantizers,
)
from lrqat.activations.ranges import BINS, calibrate
from lrqat.activations.table import ACTIVATION_GRIDS, RANGE_METHODS
from lrqat.errors import CheckpointError, DataError, GridError, UserError
from lrqat.models import surgery
from lrqat.models.preparation import Settings, prepare


@pytest.fixture
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


@pytest.fixture
def names(model):
    return list(surgery.plan_surgery(model, "q4_0").quantized)


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 500, (2, 24), generator=generator) for _ in range(3)]


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("name", ["int8-token", "int4-token", "q8_0", "int8-tensor"])
def test_attached_inputs_are_what_the_layer_multiplies(name, model, names, batches):
    grid = ACTIVATION_GRIDS[name]
    plain_logits = logits(model, batches[0])
    ranges = calibrate(model, grid, names, batches) if grid.static else None
    captured = {}
    layer = model.get_submodule(names[3])
    layer.register_forward_pre_hook(lambda m, args: captured.update(raw=args[0]))
    attach(model, grid, names, ranges)
    layer.register_forward_hook(lambda m, args, y: captured.update(x=args[0], y=y))
    rounded_logits = logits(model, batches[0])
    assert torch.equal(captured["x"], quantize(captured["raw"], grid, ranges and ranges[names[3]]))
    assert not torch.equal(captured["x"], captured["raw"])
    assert torch.equal(captured["y"], nn.functional.linear(captured["x"], layer.weight))
    assert not torch.equal(plain_logits, rounded_logits)
    detach(model)
    assert not list(quantizers(model))
    assert torch.equal(logits(model, batches[0]), plain_logits)


@pytest.mark.parametrize("name", ["int8-token", "int8-tensor"])
def test_trains_through_lrqat_layers_with_block_checkpointing(name, model, names, batches):
    grid = ACTIVATION_GRIDS[name]
    prepare(model, surgery.plan_surgery(model, "q4_0"), Settings(rank=2))
    ranges = calibrate(model, grid, names, batches) if grid.static else None
    attach(model, grid, names, ranges, learn_scale=grid.static, learn_zero_point=grid.static)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        model.zero_grad()
        model(input_ids=batches[0], labels=batches[0], use_cache=False).loss.backward()
        trained = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        gradients.append(trained)
    assert any("activation_quantizer.scale" in n for n in gradients[0]) == grid.static
    assert sum(bool(g.abs().max() > 0) for g in gradients[0].values()) > len(names)
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value)


def test_described_and_attached_again_computes_the_same(model, names, batches):
    other = copy.deepcopy(model)
    grid = ACTIVATION_GRIDS["int8-tensor"]
    ranges = calibrate(model, grid, names[:4], batches)
    attach(model, grid, names[:4], ranges, learn_scale=True, learn_zero_point=True)
    for _, quantizer in quantizers(model):  # as training leaves them
        quantizer.scale.data.mul_(1.01)
        quantizer.zero_point.data.add_(0.3)
    attach(model, ACTIVATION_GRIDS["q8_0"], names[4:])
    described, tensors = describe(model)
    described = json.loads(json.dumps(described))
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    attach_described(other, described, tensors)
    assert torch.equal(logits(other, batches[0]), logits(model, batches[0]))
    assert not any(p.requires_grad for _, q in quantizers(other) for p in q.parameters())
    assert describe(other)[0] == described


def test_a_copy_of_the_model_has_quantisers_of_its_own(model, names, batches):
    expected = logits(model, batches[0])
    attach(model, ACTIVATION_GRIDS["int4-token"], names)
    twin = copy.deepcopy(model)
    detach(model)
    assert torch.equal(logits(model, batches[0]), expected)
    assert not torch.equal(logits(twin, batches[0]), expected)
    detach(twin)
    assert torch.equal(logits(twin, batches[0]), expected)


def test_attach_refuses_before_it_changes_anything(model, names):
    layer = nn.Linear(40, 8)
    model.odd = layer
    with pytest.raises(GridError, match="odd: 40 values"):
        attach(model, ACTIVATION_GRIDS["q8_0"], [*names, "odd"])
    with pytest.raises(GridError, match="needs ranges"):
        attach(model, ACTIVATION_GRIDS["int8-tensor"], names)
    with pytest.raises(GridError, match="has no range"):
        attach(model, ACTIVATION_GRIDS["int8-tensor"], names, {})
    assert not list(quantizers(model))
    attach(model, ACTIVATION_GRIDS["int8-token"], names)
    with pytest.raises(ValueError, match="detach"):
        attach(model, ACTIVATION_GRIDS["int8-token"], names)
    with pytest.raises(GridError, match="measures its own"):
        ActivationQuantizer(
            ACTIVATION_GRIDS["q8_0"], ActivationRange(torch.ones(()), torch.ones(()))
        )


@pytest.mark.parametrize(
    ("described", "tensors"),
    [
        ({}, {}),
        ({"modules": {"model.nothing": "int8-token"}}, {}),
        ({"modules": {"lm_head": 8}}, {}),
        ({"modules": {"lm_head": "int8-tensor"}}, {}),
        (
            {"modules": {"lm_head": "int8-tensor"}},
            {
                "lm_head.input_scale": torch.tensor(-1.0),
                "lm_head.input_zero_point": torch.zeros(()),
            },
        ),
        (
            {"modules": {"lm_head": "int8-tensor"}},
            {"lm_head.input_scale": torch.ones(()), "lm_head.input_zero_point": torch.tensor(0.5)},
        ),
    ],
)
def test_records_that_do_not_belong_are_refused(model, described, tensors):
    with pytest.raises(CheckpointError):
        attach_described(model, described, tensors)


def test_calibration_needs_text_and_says_which_flags(model, names, batches):
    grid = ACTIVATION_GRIDS["int8-tensor"]
    for nothing in (None, []):
        with pytest.raises(UserError, match=r"--activations int8-tensor needs --data"):
            calibrate(model, grid, names, nothing)
    with pytest.raises(UserError, match="percentile"):
        calibrate(model, grid, names, batches, method="median")
    with pytest.raises(GridError, match="as it goes"):
        calibrate(model, ACTIVATION_GRIDS["int8-token"], names, batches)
    model.unused = nn.Linear(4, 4)
    with pytest.raises(UserError, match="reached unused"):
        calibrate(model, grid, [*names, "unused"], batches)
    model.get_input_embeddings().weight.data[0, 0] = torch.inf
    with pytest.raises(DataError, match="finite"):
        calibrate(model, grid, names, [torch.zeros(1, 4, dtype=torch.long)])


def test_calibration_sees_what_the_layers_see(model, names, batches):
    """Min-max against values captured independently, whatever the batches are cut into."""
    grid = ACTIVATION_GRIDS["int8-tensor"]
    captured = []
    model.train()
    hook = model.get_submodule(names[-1]).register_forward_hook(
        lambda m, args, y: captured.append(args[0].detach())
    )
    found = calibrate(model, grid, names, batches, method="minmax")
    assert model.training
    hook.remove()
    expected = range_of(torch.cat(captured).min(), torch.cat(captured).max(), grid)
    assert found[names[-1]] == expected
    whole = calibrate(model, grid, names, [torch.cat(batches)], method="minmax")
    torch.testing.assert_close(whole[names[-1]].scale, expected.scale)


class Passes(nn.Module):
    """A "model" whose one layer sees exactly the values that it is given."""

    def __init__(self, values):
        super().__init__()
        self.values, self.layer = values, nn.Linear(values.numel(), 1)

    def forward(self, input_ids, use_cache):
        self.layer(self.values)


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_range_methods_on_values_with_outliers(method):
    torch.manual_seed(0)
    values = torch.cat([torch.randn(100_000), torch.tensor([-80.0, 80.0])])
    grid = ACTIVATION_GRIDS["int4-tensor"]
    ranges = calibrate(Passes(values), grid, ["layer"], [torch.zeros(1)], method)["layer"]
    width = float(ranges.scale * grid.q_max)
    low, high = {"minmax": (160.0, 160.0), "percentile": (7.0, 9.0), "mse": (4.0, 30.0)}[method]
    assert low - 160 / BINS <= width <= high + 160 / BINS
    errors = {}
    for step in (1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05):
        tried = range_of(torch.tensor(-80 * step), torch.tensor(80 * step), grid)
        errors[step] = float((quantize(values, grid, tried) - values).square().sum())
    if method == "mse":
        found = float((quantize(values, grid, ranges) - values).square().sum())
        assert found <= min(errors.values()) * 1.02
