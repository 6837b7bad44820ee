"""The table of what has to be known of a model, held against transformers' own models."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lrqat.architectures import (
    ARCHITECTURES,
    Role,
    embedding_factor,
    find_architecture,
    is_embedding,
    is_output_head,
    role_of,
)
from lrqat.models import hub
from lrqat.models.matrices import ROUTER
from lrqat.models.surgery import plan_surgery
from tests.support.gguf_shells import gguf_names
from tests.support.zoo import CONFIGS, MODELS, make

FACTORS = {"gemma2": 8.0, "gemma3": 8.0}  # the root of 64


@pytest.mark.parametrize("name", MODELS)
def test_names_of_embedding_and_head_are_known_and_no_other_module_has_them(name):
    model = hub.meta_model(CONFIGS[name]())
    (_, embedding, head), _ = MODELS[name]
    modules = [module for module, _ in model.named_modules()]
    assert [m for m in modules if is_embedding(m)] == [embedding]
    assert [m for m in modules if is_output_head(m)] == [head]


@pytest.mark.parametrize("name", MODELS)
def test_matrices_that_lie_transposed_are_those_of_conv1d(name):
    model = hub.meta_model(CONFIGS[name]())
    entry = find_architecture(model.config.model_type)
    transposed = {n for n, _ in model.named_parameters() if entry.is_transposed(n)}
    assert transposed == {
        f"{n}.weight" for n, module in model.named_modules() if isinstance(module, Conv1D)
    }


@pytest.mark.parametrize("name", MODELS)
def test_the_embeddings_factor_is_what_it_multiplies_with_on_meta_too(name):
    config, embedding = CONFIGS[name](), make(name).get_input_embeddings()
    assert embedding_factor(embedding) == FACTORS.get(name)
    assert embedding_factor(hub.meta_model(config).get_input_embeddings()) == FACTORS.get(name)
    ids = torch.arange(4)
    rows = nn.functional.embedding(ids, embedding.weight) * FACTORS.get(name, 1.0)
    assert torch.equal(embedding(ids), rows)


def test_a_factor_that_is_only_a_buffer_counts_too():
    embedding = nn.Embedding(2, 4)
    embedding.register_buffer("embed_scale", torch.tensor(3.0))
    assert embedding_factor(embedding) == 3.0


def test_what_is_particular_is_an_entry_of_the_table_and_nothing_is_assumed_of_others():
    assert find_architecture("gpt2") is ARCHITECTURES["gpt2"]
    for unknown in ("no-such-model", None, 3):
        entry = find_architecture(unknown)
        assert not entry.is_transposed("transformer.h.0.attn.c_attn.weight")
        assert (entry.genai_type, entry.genai_builder) == (None, False)


def test_the_table_needs_no_torch():
    code = (
        "import sys, lrqat.architectures, lrqat.checkpoint.weight_kinds\n"
        "import exporters.embedding_and_head\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def category(name):
    """As `tensor_get_category` of llama.cpp's src/llama-quant.cpp."""
    name = name.removesuffix(".weight")
    if name in (Role.EMBEDDING, Role.HEAD):
        return Role(name)
    parts = [r for r in Role if r not in (Role.EMBEDDING, Role.HEAD, Role.OTHER)]
    whole = {r for r in parts if name.endswith(f".{r}")}
    begun = {r for r in parts if r.startswith("ffn_") and f".{r}" in name}
    return next(iter(whole or begun), Role.OTHER)


ARCHITECTURES_OF_GGUF = {"mistral": "llama", "gemma3_text": "gemma3", "gpt_neox": "gptneox"} | {
    "qwen3_moe": "qwen3moe", "qwen2_moe": "qwen2moe", "falcon_h1": "falcon-h1",
}  # fmt: skip


@pytest.mark.parametrize("name", [*MODELS, "falcon_h1"])
def test_the_role_of_every_weight_is_that_of_its_tensor_in_llama_cpp(name):
    model = hub.meta_model(CONFIGS[name]())
    (_, embedding, _), _ = MODELS.get(name, MODELS["llama"])
    plan = plan_surgery(model, "int4-channel", grid_for={f"{embedding}$": "q8_0"})
    modules = [m for m in [*plan.quantized, *plan.kept] if plan.kept.get(m) != ROUTER]
    assert embedding in modules
    kind = model.config.model_type
    names = gguf_names(modules, ARCHITECTURES_OF_GGUF.get(kind, kind), 2)
    assert {module: {role_of(module)} for module in modules} == {
        # A stack of gate and up is one weight here and two tensors there, of the same types.
        module: {category(own) for own in found if "gate_exps" not in own}
        for module, found in names.items()
    }


def test_what_a_weight_of_another_name_is_is_not_known():
    assert role_of("model.layers.0.something_else") is None
    assert role_of("model.layers.0.mamba.out_proj") == Role.OTHER
