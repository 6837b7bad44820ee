"""Layers that a model goes around: what it reads itself, and what it never calls."""

import pytest
import torch
import transformers as hf

from lrqat.errors import UserError
from lrqat.models import preparation, surgery
from lrqat.models.weight_use import READ_AROUND, UNUSED, misused_layers
from tests.support.zoo import make

READ = {
    "mamba": {"dt_proj", "x_proj", "out_proj", "lm_head"},  # of the head it asks the type
    "mamba2": {"out_proj", "lm_head"},
    "falcon_h1": {"out_proj"},
    "jamba": {"dt_proj"},  # found in the source: its experts depend on values
}


def last_parts(names):
    return {name.rpartition(".")[2] for name in names}


@pytest.mark.parametrize("name", READ)
def test_weights_that_a_model_reads_itself_are_found(name):
    found = misused_layers(make(name))
    assert last_parts(found) == READ[name]
    assert set(found.values()) == {READ_AROUND}


@pytest.mark.parametrize("name", ["llama, tied", "gpt2", "gemma3", "qwen3_moe", "phi3, window"])
def test_models_that_call_their_layers_have_none(name):
    assert misused_layers(make(name)) == {}


def test_layers_that_are_never_called_are_found():
    """A decoder that was made for an encoder beside it, and has none."""
    sizes = {"d_model": 64, "decoder_layers": 1, "decoder_attention_heads": 4, "vocab_size": 99}
    tokens = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    ids = dict.fromkeys(tokens, 0)
    model = hf.WhisperForCausalLM(hf.WhisperConfig(**sizes, **ids))
    found = misused_layers(model)
    assert {name.split(".")[-2] for name in found} == {"encoder_attn"}
    assert set(found.values()) == {UNUSED}


def test_what_is_read_stays_unquantized_and_the_rest_is_trained():
    model = make("mamba")
    plan = surgery.plan_surgery(model, "q4_0", grid_for={"out_proj|in_proj": "q8_0"})
    assert last_parts(plan.quantized) == {"in_proj"}
    assert last_parts(plan.kept) == READ["mamba"]
    assert plan.kept["backbone.layers.0.mixer.dt_proj"] == READ_AROUND
    assert plan.kept["lm_head"] == "output head"
    with pytest.raises(UserError, match="reads the weight itself"):
        surgery.plan_surgery(model, "q4_0", grid_for={"lm_head": "q8_0"})


@pytest.mark.parametrize("method", ["lr-qat", "full"])
@pytest.mark.parametrize("name", ["mamba", "falcon_h1"])
def test_every_trained_weight_of_a_state_space_model_gets_a_gradient(name, method):
    model = make(name)
    plan = surgery.plan_surgery(model, "q4_0")
    settings = preparation.Settings(rank=4, method=method, range_init="minmax")
    prepared = preparation.prepare(model, plan, settings).train()
    ids = torch.arange(3, 19)[None]
    prepared(input_ids=ids, use_cache=False).logits.square().mean().backward()
    layers = dict(preparation.quantized_layers(prepared))
    assert set(layers) == set(plan.quantized)
    assert all(layer.scale.grad.abs().sum() > 0 for layer in layers.values())
