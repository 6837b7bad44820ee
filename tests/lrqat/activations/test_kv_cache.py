"""The quantised KV cache on real (tiny) transformers models."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    Qwen3Config,
)
from transformers.models.llama import modeling_llama

from lrqat.activations.grids import quantize
from lrqat.activations.kv_cache import kv_bits, plain_attention, quantize_kv_cache, restore_kv_cache
from lrqat.activations.table import ACTIVATION_GRIDS
from lrqat.errors import ModelError, UserError

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES),
    # A window shorter than the text, so that the two kinds of mask differ.
    "gemma2": lambda: Gemma2Config(**SIZES, sliding_window=4, query_pre_attn_scalar=8),
    "gpt2": lambda: GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64),
}
# Gemma 2 is eager alone: transformers' sdpa has no soft cap.
WAYS = [*((name, "eager") for name in CONFIGS), *((n, "sdpa") for n in CONFIGS if n != "gemma2")]
IDS = torch.randint(1, 64, (2, 12), generator=torch.Generator().manual_seed(1))


def make(name, attention=None):
    torch.manual_seed(0)
    options = {"attn_implementation": attention} if attention else {}
    model = AutoModelForCausalLM.from_config(CONFIGS[name](), **options).eval()
    for parameter in model.parameters():  # larger than by default, so that attention matters
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def logits(model, ids=IDS, **options):
    with torch.no_grad():
        return model(input_ids=ids, **options).logits


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("name", "attention"), WAYS)
def test_models_run_with_a_rounded_cache_and_go_back(name, attention, bits):
    model = make(name, attention)
    before = logits(model)
    quantize_kv_cache(model, bits)
    assert kv_bits(model) == bits
    assert plain_attention(model) == attention
    error = (logits(model) - before).abs().max() / before.abs().max()
    assert 0 < error < {8: 0.05, 4: 0.6}[bits]
    restore_kv_cache(model)
    assert kv_bits(model) is None
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(("name", "attention"), WAYS)
def test_masks_of_padding_and_windows_stay_right(name, attention):
    """A left-padded batch equals each sequence alone: nothing attends where it must not."""
    model = make(name, attention)
    quantize_kv_cache(model, 8)
    ids = torch.cat([torch.zeros(1, 5, dtype=torch.long), IDS[:1, 5:]], 1)
    mask = (ids != 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = logits(model, ids, attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(padded[:, 5:], logits(model, IDS[:1, 5:]), rtol=1e-4, atol=1e-4)
    # A later token changes nothing before it.
    longer = logits(model, IDS)
    torch.testing.assert_close(longer[:, :8], logits(model, IDS[:, :8]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "attention"), WAYS)
def test_decoding_with_the_cache_equals_one_pass(name, attention):
    model = make(name, attention)
    quantize_kv_cache(model, 4)
    whole = logits(model)
    with torch.no_grad():
        step = model(input_ids=IDS[:, :7], use_cache=True)
        parts = [step.logits]
        for i in range(7, IDS.shape[1]):
            step = model(
                input_ids=IDS[:, i : i + 1], past_key_values=step.past_key_values, use_cache=True
            )
            parts.append(step.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)


def test_keys_after_rotary_embedding_and_values_are_rounded(monkeypatch):
    """Against Llama's own eager attention given keys and values rounded by hand."""
    model = make("llama", "eager")
    grid = ACTIVATION_GRIDS["int4-token"]
    eager = modeling_llama.eager_attention_forward
    shapes = []

    def by_hand(module, query, key, value, *args, **options):
        shapes.append(key.shape)
        return eager(module, query, quantize(key, grid), quantize(value, grid), *args, **options)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", by_hand)
    expected = logits(model)
    assert shapes == [(2, 2, 12, 8)] * 3
    monkeypatch.undo()
    quantize_kv_cache(model, 4)
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_pass_straight_through(checkpointing):
    """As in plain autograd, where what is rounded is x + (rounded - x).detach()."""
    model = make("qwen3", "eager")
    grid = ACTIVATION_GRIDS["int8-token"]

    def plain(module, query, key, value, *args, **options):
        key, value = (t + (quantize(t, grid) - t).detach() for t in (key, value))
        return modeling_llama.eager_attention_forward(module, query, key, value, *args, **options)

    gradients = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.models.qwen3.modeling_qwen3.eager_attention_forward", plain)
        gradients.append(gradients_of(model))
    quantize_kv_cache(model, 8)
    if checkpointing:
        model.gradient_checkpointing_enable()
    gradients.append(gradients_of(model))
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-3, atol=1e-5)


def gradients_of(model):
    model.zero_grad()
    model.train()(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_a_saved_model_does_not_carry_the_setting(tmp_path):
    model = make("llama", "sdpa")
    quantize_kv_cache(model, 8)
    model.save_pretrained(tmp_path)
    assert "lrqat" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    assert kv_bits(AutoModelForCausalLM.from_pretrained(tmp_path)) is None


def test_calling_again_changes_the_bits_even_while_training_with_dropout():
    model = make("gpt2", "sdpa")
    assert model.config.attn_pdrop > 0
    quantize_kv_cache(model, 8)
    eight = logits(model)
    quantize_kv_cache(model, 4)
    assert kv_bits(model) == 4
    assert not torch.equal(logits(model), eight)
    model.train()
    quantize_kv_cache(model, 8)
    assert model.training
    assert torch.equal(logits(model.eval()), eight)


def test_models_with_attention_of_their_own_are_refused():
    bloom = BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)
    mamba = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    for config in (bloom, mamba):
        model = AutoModelForCausalLM.from_config(config).eval()
        before = logits(model)
        with pytest.raises(ModelError, match="0 of its 2 layers"):
            quantize_kv_cache(model, 8)
        assert kv_bits(model) is None
        assert torch.equal(logits(model), before)


def test_a_layer_that_goes_its_own_way_is_found(monkeypatch):
    model = make("llama", "sdpa")
    own = model.model.layers[1].self_attn
    monkeypatch.setattr(own, "forward", lambda hidden_states, **options: (hidden_states, None))
    with pytest.raises(ModelError, match="2 of its 3 layers"):
        quantize_kv_cache(model, 8)
    assert plain_attention(model) == "sdpa"
    assert kv_bits(model) is None


def test_a_model_that_computes_otherwise_under_another_name_is_refused():
    model = make("gpt2", "eager")
    model.transformer.h[0].attn.forward = lambda states, *a, **k: (
        states * (model.config._attn_implementation == "eager"),
        None,
    )
    with pytest.raises(ModelError, match="not with the same result"):
        quantize_kv_cache(model, 8)


def test_other_bits_and_other_attention_are_refused():
    model = make("llama", "sdpa")
    with pytest.raises(UserError, match="--kv-bits 5"):
        quantize_kv_cache(model, 5)
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match="flex_attention"):
        quantize_kv_cache(model, 8)
