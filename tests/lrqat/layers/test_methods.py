"""The methods that LR-QAT is compared with: what each trains, merges and refuses."""

import pytest
import torch
from torch import nn

from lrqat.errors import UserError
from lrqat.layers.linear import LRQATLinear
from lrqat.layers.lora import LoRALinear
from lrqat.layers.methods import METHODS
from lrqat.layers.modes import full_precision
from lrqat.layers.weight import QuantizedWeight
from lrqat.models.preparation import Settings, check_settings, merge_and_round, prepare
from lrqat.models.surgery import plan_surgery
from tests.support.trained import assert_computes_the_same, logits, loss, round_trip
from tests.support.zoo import make


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_each_method_trains_its_own_parameters_alone(name, method, tmp_path):
    settings = Settings(rank=4, range_init="minmax", method=method)
    model = make(name)
    expected, plan = logits(model), plan_surgery(model, "q4_1")
    prepare(model, plan, settings)
    layers = [m for m in model.modules() if isinstance(m, QuantizedWeight | LoRALinear)]
    assert len(layers) == len(plan.quantized)
    with full_precision(model):
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    wanted = set(METHODS[method].trains)
    if method == "rtn":
        assert not loss(model).requires_grad
    else:
        loss(model).backward()
    for layer in layers:
        graded = {n for n, p in layer.named_parameters() if p.grad is not None}
        assert graded == {n for n, p in layer.named_parameters() if p.requires_grad} == wanted
        assert all(p.grad.isfinite().all() for p in layer.parameters() if p.grad is not None)
        # A is zero, and (in full training) the minima move what is clipped: nothing as yet.
        silent = {"lora_b", "minimum"} if method == "full" else {"lora_b"}
        assert all(getattr(layer, n).grad.any() for n in wanted - silent)
    with torch.no_grad():
        for parameter in (p for layer in layers for p in layer.parameters() if p.requires_grad):
            parameter.add_(0.05 * parameter.abs().mean() * torch.randn_like(parameter))
    if method == "lora-then-rtn":
        merge_and_round(model, plan, settings)
        assert not any(p.requires_grad for p in model.parameters())
    assert_computes_the_same(name, model, round_trip(model, plan, tmp_path)[1])


def test_merging_rounds_the_sum():
    model = make("llama")
    plan, settings = plan_surgery(model, "q8_0"), Settings(rank=4, method="lora-then-rtn")
    prepare(model, plan, settings)
    name = "model.layers.1.mlp.up_proj"
    lora = model.get_submodule(name)
    nn.init.normal_(lora.lora_a, std=0.1)
    merged = lora.phi + lora.lora_a @ lora.lora_b
    merge_and_round(model, plan, settings)
    layer = model.get_submodule(name)
    assert isinstance(layer, LRQATLinear)
    rounded = layer.integers() * layer.stored().scale.repeat_interleave(32, dim=1)
    steps = layer.stored().scale.repeat_interleave(32, dim=1)
    assert ((rounded - merged).abs() <= 0.51 * steps).float().mean() > 0.99


@pytest.mark.parametrize("method", ["full", "lora-then-rtn"])
def test_methods_of_linear_layers_refuse_experts(method):
    plan = plan_surgery(make("qwen3_moe"), "q4_0")
    with pytest.raises(UserError, match=f"--method {method} does not train .*a stack of experts"):
        check_settings(plan, Settings(rank=4, method=method))


@pytest.mark.parametrize("method", ["full", "lora-then-rtn"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_methods_of_linear_layers_round_the_embedding(method, name):
    model = make(name)
    plan = plan_surgery(model, "q4_0", embedding_and_head="q8_0")
    prepare(model, plan, Settings(rank=4, method=method))
    table = model.get_input_embeddings().table
    assert table.grid.name == "q8_0"
    assert table.lora_a.numel() == 0
    assert (model.get_output_embeddings() is table) == (name == "qwen3")
