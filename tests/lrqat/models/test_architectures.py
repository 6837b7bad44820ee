"""Every architecture of Hugging Face that we name, tiny and random, from the plan to the reference.

The oracles are transformers' own models: the original one for full precision, and the one that
loads the fused checkpoint for what was trained.
"""

import re

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from lrqat.layers.embedding import LRQATEmbedding
from lrqat.layers.experts import LRQATExperts
from lrqat.layers.modes import full_precision
from lrqat.models import hub
from lrqat.models.matrices import OUTPUT_HEAD, ROUTER
from lrqat.models.preparation import prepare, quantized_layers
from lrqat.models.surgery import plan_surgery
from tests.support.trained import (
    IDS,
    SETTINGS,
    assert_computes_the_same,
    logits,
    loss,
    move,
    round_trip,
)
from tests.support.zoo import MODELS, STACKS, TIED, make

# One of every kind of embedding: plain and scaled, tied and not, other names.
EMBEDDINGS = ("llama", "qwen3", "gemma3", "granite", "gpt2", "gpt_neox")


def prepared(name):
    model = make(name)
    return prepare(model, plan_surgery(model, "q4_0"), SETTINGS)


@pytest.mark.parametrize("name", MODELS)
def test_the_plan_names_everything(name):
    (layers, _, head), inside = MODELS[name]
    model = make(name)
    plan = plan_surgery(model, "q4_0")
    assert list(plan.quantized) == [f"{layers}.{i}.{part}" for i in range(2) for part in inside]
    routers = ["gate"] if "moe" in name else []
    routers += ["shared_expert_gate"] if name == "qwen2_moe" else []
    expected = {f"{layers}.{i}.mlp.{router}": ROUTER for i in range(2) for router in routers}
    assert plan.kept == {head: OUTPUT_HEAD} | expected
    for module_name, target in plan.quantized.items():
        own = module_name if target.kind == "experts" else f"{module_name}.weight"
        value = model.get_parameter(own)
        parent = model.get_submodule(own.rpartition(".")[0])
        turned = value.T if isinstance(parent, Conv1D) else value
        assert turned.shape[-2:] == target.shape
        assert turned.numel() == target.weights
    assert plan_surgery(hub.meta_model(model.config), "q4_0") == plan


@pytest.mark.parametrize("name", MODELS)
def test_full_precision_is_the_original_model(name):
    expected = logits(make(name))
    model = move(prepared(name))
    with full_precision(model):
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    assert (logits(model) - expected).abs().max() > 1e-2, "the test must tell the two apart"


@pytest.mark.parametrize("name", MODELS)
def test_first_gradients_reach_every_weight(name):
    model = prepared(name).train()
    visited = visits(model)
    loss(model).backward()
    reached = 0
    for layer_name, layer in quantized_layers(model):
        if layer_name.rpartition(".")[2].isdigit() and layer_name not in visited:
            assert layer.lora_a.grad is None
            continue
        reached += 1
        assert layer.lora_a.grad.isfinite().all(), layer_name
        assert layer.scale.grad.isfinite().all(), layer_name
        assert layer.lora_a.grad.abs().max() > 0, layer_name
        assert layer.scale.grad.abs().max() > 0, layer_name
        assert not layer.lora_b.grad.any(), "dL/dB = A^T ..., and A is zero"
    assert reached >= 4
    others = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.rpartition(".")[2] for n in others} == {"lora_a", "lora_b", "scale"}


def visits(model):
    """Names of the experts that are indexed, gathered while the model runs."""
    names = set()
    for stack_name, stack in model.named_modules():
        if isinstance(stack, LRQATExperts):
            stack.__class__ = type("Watched", (LRQATExperts,), {"__getitem__": _watched(names)})
            stack.stack_name = stack_name
    return names


def _watched(names):
    def get(self, index):
        names.add(f"{self.stack_name}.{int(index)}")
        return LRQATExperts.__getitem__(self, index)

    return get


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["qwen3_moe", "qwen2_moe"])
def test_experts_are_built_one_by_one(name, training):
    model = make(name)
    model.set_experts_implementation("grouped_mm")
    model = prepare(model, plan_surgery(model, "q4_0"), SETTINGS).train(training)
    visited = visits(model)
    logits(model)
    stacks = [f"model.layers.{i}.{stack}" for i in range(2) for stack in STACKS]
    assert {n.rpartition(".")[0] for n in visited} == set(stacks)
    visited.clear()
    model.generate(IDS[:1], max_new_tokens=2, do_sample=False)
    assert {n.rpartition(".")[0] for n in visited} == set(stacks)


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_is_the_trained_model(name, tmp_path):
    model = make(name)
    plan = plan_surgery(model, "q4_0")
    move(prepare(model, plan, SETTINGS))
    checkpoint, reference = round_trip(model, plan, tmp_path)
    assert sum(
        checkpoint.shape(n)[0] * checkpoint.shape(n)[1] for n in checkpoint.quantized_names
    ) == sum(t.weights for t in plan.quantized.values())
    assert_computes_the_same(name, model, reference)


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embedding_and_head_on_a_grid(name, tmp_path):
    (_, embedding, head), inside = MODELS[name]
    expected = logits(make(name))
    model = make(name)
    grid_for = {re.escape(embedding): "q5_0", re.escape(head): "q5_0"}
    plan = plan_surgery(model, "q4_0", grid_for=grid_for)
    assert plan == plan_surgery(hub.meta_model(model.config), "q4_0", grid_for=grid_for)
    assert plan.quantized[embedding].grid.name == "q5_0"
    assert (plan.quantized[embedding].tied_to == head) == (name in TIED)
    assert (head in plan.quantized) == (name not in TIED)
    prepare(model, plan, SETTINGS)
    loss(model).backward()
    for module in (model.get_submodule(embedding).table, model.get_submodule(head)):
        used = module.lora_a.grad.abs().sum(-1) > 0
        assert used[IDS.unique()].all()
        assert used.all() == (module is model.get_submodule(head)), "only rows that were looked up"
    move(model)
    with full_precision(model):
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    layers = list(quantized_layers(model))
    assert len(layers) == 2 * len(inside) + (1 if name in TIED else 2)
    if name in TIED:
        assert model.get_submodule(embedding).table is model.get_submodule(head)
    checkpoint, reference = round_trip(model, plan, tmp_path)
    kinds = {n: checkpoint.kind(n) for n in checkpoint.quantized_names}
    assert kinds[embedding] == "embedding"
    assert (head in kinds) == (name not in TIED)
    assert not [n for n in checkpoint.floating_names if n.startswith((embedding, head))]
    tied = reference.get_output_embeddings().weight is reference.get_input_embeddings().weight
    assert tied == (name in TIED)
    assert_computes_the_same(name, model, reference)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaled_embeddings_are_scaled_as_gemma_does(name, dtype):
    original = make(name, dtype).get_input_embeddings()
    # 64 ** 0.5 is exact in every type; the factor of 2048 is not in bfloat16.
    original.scalar_embed_scale = 2048**0.5
    original.embed_scale.fill_(2048**0.5)
    expected = original(IDS)
    model = make(name, dtype)
    model.get_input_embeddings().scalar_embed_scale = 2048**0.5
    model.get_input_embeddings().embed_scale.fill_(2048**0.5)
    prepare(model, plan_surgery(model, "q4_0", grid_for={"embed": "q8_0"}), SETTINGS)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, LRQATEmbedding)
    with full_precision(model):
        # Phi0 times s0 rounded to bfloat16 is the original weight; in float32 it is near it.
        error = 0 if dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(embedding(IDS), expected, rtol=error, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert embedding(IDS).dtype == dtype, "autocast leaves an nn.Embedding alone"


def test_a_model_on_meta_is_prepared_from_a_reader():
    source = make("gemma3")
    values = source.state_dict()
    plan = plan_surgery(source, "q4_0", grid_for={"embed": "q8_0"})
    model = hub.meta_model(source.config)
    prepare(model, plan, SETTINGS, load=lambda name: values[name])
    prepare(source, plan, SETTINGS)
    embedding, expected = model.get_input_embeddings(), source.get_input_embeddings()
    assert torch.equal(embedding(IDS), expected(IDS))
    pairs = zip(quantized_layers(model), quantized_layers(source), strict=True)
    for (name, ours), (other, theirs) in pairs:
        assert name == other
        assert torch.equal(ours.phi, theirs.phi)
