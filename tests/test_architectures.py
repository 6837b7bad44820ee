"""Every architecture of Hugging Face that we name, tiny and random, from the plan to the reference.

The oracles are transformers' own models: the original one for full precision, and the one that
loads the fused checkpoint for what was trained.
"""

import re

import pytest
import torch
import transformers as hf
from made_architectures import HEAD_DIM, MODELS, SIZES, STACKS, TIED, VOCABULARY, make
from torch import nn
from transformers.pytorch_utils import Conv1D

from lrqat import hub
from lrqat.base_model import make_tokenizer
from lrqat.checkpoint import Checkpoint
from lrqat.errors import UserError
from lrqat.fuse import fuse
from lrqat.layer import LRQATLinear, full_precision
from lrqat.methods import METHODS, LoRALinear
from lrqat.prepare import Settings, check_settings, merge_and_round, prepare, quantized_layers
from lrqat.reference import load_reference
from lrqat.surgery import OUTPUT_HEAD, ROUTER, WHOLE_STACK, plan_surgery
from lrqat.tables import LRQATEmbedding, LRQATExperts
from lrqat.weight import QuantizedWeight

# One of every kind of embedding: plain and scaled, tied and not, other names.
EMBEDDINGS = ("llama", "qwen3", "gemma3", "granite", "gpt2", "gpt_neox")
# The layer adds a bias to the product; transformers does both in one kernel, which rounds once.
WITH_BIAS = {"qwen2", "qwen2_moe", "gpt2", "gpt_neox"}
IDS = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1))
SETTINGS = Settings(rank=4, range_init="minmax")


def prepared(name, plan=None, settings=SETTINGS):
    model = make(name)
    return prepare(model, plan or plan_surgery(model, "q4_0"), settings)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def loss(model):
    return model(input_ids=IDS, labels=IDS, use_cache=False).loss


def move(model):
    """Random low-rank matrices and scales, as if trained."""
    torch.manual_seed(2)
    for _, layer in quantized_layers(model):
        nn.init.normal_(layer.lora_a, std=layer.grid.q_max / 64)
        layer.scale.data.mul_(torch.empty_like(layer.scale).uniform_(0.8, 1.2))
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(["some text to make merges of, " * 20], vocabulary=VOCABULARY)


@pytest.fixture
def round_trip(tokenizer, tmp_path):
    """Function (model, plan) -> the opened checkpoint and the reference."""

    def run(model, plan):
        base = {"name": "tiny", "revision": None, "dtype": "float32"}
        folder = fuse(model, tokenizer, tmp_path / "fused", plan=plan, base_model=base)
        checkpoint = Checkpoint.open(folder)
        return checkpoint, load_reference(checkpoint)

    return run


def assert_computes_the_same(name, model, reference):
    ours, theirs = logits(model), logits(reference)
    if name in WITH_BIAS:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", MODELS)
def test_the_plan_names_everything(name):
    _, (layers, _, head), inside = MODELS[name]
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
def test_the_reference_is_the_trained_model(name, round_trip):
    model = make(name)
    plan = plan_surgery(model, "q4_0")
    move(prepare(model, plan, SETTINGS))
    checkpoint, reference = round_trip(model, plan)
    assert sum(
        checkpoint.shape(n)[0] * checkpoint.shape(n)[1] for n in checkpoint.quantized_names
    ) == sum(t.weights for t in plan.quantized.values())
    assert_computes_the_same(name, model, reference)


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embedding_and_head_on_a_grid(name, round_trip):
    _, (_, embedding, head), inside = MODELS[name]
    expected = logits(make(name))
    model = make(name)
    grid_for = {re.escape(embedding): "q8_0", re.escape(head): "q8_0"}
    plan = plan_surgery(model, "q4_0", grid_for=grid_for)
    assert plan == plan_surgery(hub.meta_model(model.config), "q4_0", grid_for=grid_for)
    assert plan.quantized[embedding].grid.name == "q8_0"
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
    checkpoint, reference = round_trip(model, plan)
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


def wide_llama(**changes):
    torch.manual_seed(0)
    sizes = SIZES | {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**sizes | changes)).eval()


def test_a_grid_for_every_part(round_trip):
    model = wide_llama()
    grids = {"down_proj": "q6_k", "lm_head": "q6_k", "embed_tokens": "q8_0", "v_proj": "q4_k"}
    grids |= {"gate_proj": "int3-asym-g64", "up_proj": "iq4_nl"}
    plan = plan_surgery(model, "q4_0", keep=["o_proj"], grid_for=grids)
    named = {n.rpartition(".")[2]: t.grid.name for n, t in plan.quantized.items()}
    assert named == grids | {"q_proj": "q4_0", "k_proj": "q4_0"}
    move(prepare(model, plan, SETTINGS))
    checkpoint, reference = round_trip(model, plan)
    assert checkpoint.grids == set(named.values())
    assert "model.layers.0.self_attn.o_proj.weight" in checkpoint.floating_names
    assert torch.equal(logits(model), logits(reference))


def test_the_last_matching_pattern_counts():
    plan = plan_surgery(wide_llama(), "q4_0", grid_for={"proj": "q5_0", "down_proj": "q6_k"})
    assert plan.quantized["model.layers.0.mlp.down_proj"].grid.name == "q6_k"
    assert plan.quantized["model.layers.0.mlp.up_proj"].grid.name == "q5_0"


@pytest.mark.parametrize(
    ("name", "grid_for", "match"),
    [
        ("llama", {"no_such": "q8_0"}, "'no_such' matches no linear layer"),
        ("llama", {"down_proj": "q9_9"}, "unknown grid 'q9_9'"),
        ("qwen3", {"embed_tokens": "q8_0", "lm_head": "q6_k"}, "give one grid"),
        ("qwen3_moe", {r"mlp\.gate$": "q8_0"}, "matches no linear layer"),
    ],
)
def test_patterns_that_ask_for_the_impossible(name, grid_for, match):
    with pytest.raises(UserError, match=match):
        plan_surgery(make(name), "q4_0", grid_for=grid_for)


def test_routers_are_out_of_reach_of_patterns():
    plan = plan_surgery(make("qwen2_moe"), "q4_0", grid_for={"gate": "q8_0"})
    assert plan.kept["model.layers.0.mlp.gate"] == ROUTER
    assert plan.kept["model.layers.1.mlp.shared_expert_gate"] == ROUTER
    assert plan.quantized["model.layers.0.mlp.experts.gate_up_proj"].grid.name == "q8_0"


def test_stacks_that_cannot_be_indexed_stay_and_are_named():
    config = hf.GptOssConfig(
        **HEAD_DIM, num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"] * 2
    )
    plan = plan_surgery(hub.meta_model(config), "q4_0", grid_for={"proj": "q8_0"})
    assert plan.kept["model.layers.0.mlp.experts.gate_up_proj"] == WHOLE_STACK
    assert plan.kept["model.layers.0.mlp.experts.down_proj"] == WHOLE_STACK
    assert plan.kept["model.layers.0.mlp.router"] == ROUTER
    assert len(plan.quantized) == 2 * 4


def test_a_router_within_a_router_stays():
    sizes = {k: v for k, v in SIZES.items() if k != "num_attention_heads"}
    plan = plan_surgery(hub.meta_model(hf.JetMoeConfig(**sizes, kv_channels=16)), "q4_0")
    assert set(plan.quantized) == {f"model.layers.{i}.self_attention.kv_proj" for i in range(2)}
    assert plan.kept["model.layers.0.mlp.router.layer"] == ROUTER
    assert plan.kept["model.layers.0.mlp.input_linear.weight"] == WHOLE_STACK


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_each_method_trains_its_own_parameters_alone(name, method, round_trip):
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
    assert_computes_the_same(name, model, round_trip(model, plan)[1])


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
@pytest.mark.parametrize(
    ("name", "grid_for", "what"),
    [("llama", {"embed_tokens": "q8_0"}, "an embedding"), ("qwen3_moe", {}, "a stack of experts")],
)
def test_methods_of_linear_layers_refuse_the_rest(method, name, grid_for, what):
    plan = plan_surgery(make(name), "q4_0", grid_for=grid_for)
    with pytest.raises(UserError, match=f"--method {method} does not train .*{what}"):
        check_settings(plan, Settings(rank=4, method=method))
