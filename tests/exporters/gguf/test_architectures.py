"""The entries of architectures for GGUF: what they refuse, and how they lay tensors out.

That llama.cpp computes what they do not refuse is in runtime_tests/test_gguf_architectures.py.
"""

import json

import numpy as np
import pytest
import torch

from exporters import gguf
from exporters.gguf.architectures import find_architecture
from exporters.gguf.graph.hyperparameters import hyperparameters, refusals
from exporters.gguf.graph.rope import interleaved_rows
from exporters.gguf.tensors.sources import find_sources
from lrqat.errors import CheckpointError
from tests.support.checkpoints import fused
from tests.support.zoo import CONFIGS, IN_LLAMA_CPP, LINEAR_ROPE, YARN_ROPE

HF_NAMES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma2": "Gemma2ForCausalLM", "gemma3": "Gemma3ForCausalLM", "phi3": "Phi3ForCausalLM",
    "granite": "GraniteForCausalLM", "smollm3": "SmolLM3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM", "gpt2": "GPT2LMHeadModel",
}  # fmt: skip


def config_of(name, **changes):
    config = json.loads(CONFIGS[name]().to_json_string())
    return config | {"architectures": [HF_NAMES[name.partition(",")[0]]]} | changes


@pytest.mark.parametrize("name", IN_LLAMA_CPP)
def test_what_llama_cpp_computes_is_not_refused(name):
    config = config_of(name)
    assert refusals(find_architecture(config), config) == []


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
SLIDING = {
    "sliding_window": 16,
    "use_sliding_window": True,
    "layer_types": ["sliding_attention"] * 2,
}
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
LOCAL = {"full_attention": LINEAR_ROPE, "sliding_attention": LINEAR_ROPE}


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        *((name, {"rope_parameters": DYNAMIC}, "dynamic") for name in HF_NAMES if name != "gpt2"),
        *(
            (name, {key: "relu"}, "relu")
            for name in HF_NAMES
            for key in ["activation_function" if name == "gpt2" else "hidden_act"]
            if "gemma" not in name
        ),
        ("gemma2", {"hidden_activation": "gelu"}, "'gelu'"),
        ("gemma3", {"hidden_activation": "gelu"}, "'gelu'"),
        ("mistral", {"sliding_window": 16}, "slides over 16"),
        *((name, SLIDING, "slides over 16") for name in ("qwen2", "qwen3", "qwen3_moe")),
        ("smollm3", SLIDING | {"layer_types": ["sliding_attention"] * 4}, "slides over 16"),
        ("phi3", {"sliding_window": 16}, "slides over 16"),
        ("qwen3", {"rope_parameters": PARTIAL}, "0.5 of a head"),
        ("phi3", {"rope_parameters": PARTIAL | {"partial_rotary_factor": 0.2}}, "pairs"),
        ("qwen2", {"head_dim": 32}, "are not the hidden size 64"),
        ("olmo2", {"head_dim": 32}, "are not the hidden size 64"),
        ("phi3", {"head_dim": 32}, "are not the hidden size 64"),
        ("qwen3", {"num_key_value_heads": 3}, "do not divide"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "no experts"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "no experts"),
        ("gemma2", {"query_pre_attn_scalar": 256}, "query_pre_attn_scalar is 256"),
        ("gemma3", {"query_pre_attn_scalar": 256}, "query_pre_attn_scalar is 256"),
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping is null"),
        ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping is null"),
        ("gemma2", {"tie_word_embeddings": False}, "the head is not the embedding"),
        ("gemma2", {"use_bidirectional_attention": True}, "looks ahead"),
        ("gemma3", {"use_bidirectional_attention": True}, "looks ahead"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "no such cap"),
        ("gemma3", {"rope_parameters": LOCAL}, "in sliding layers"),
        ("smollm3", {"no_rope_layers": [1, 1, 0, 1]}, "every 4th"),
        ("smollm3", {"rope_parameters": {**DYNAMIC, "rope_type": "llama3"}}, "llama3"),
        # Phi-3's own "yarn" is transformers' old name of LongRoPE.
        ("phi3", {"rope_parameters": YARN_ROPE}, "yarn"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse"),
    ],
)
def test_what_it_does_not_compute_is_refused(name, changes, said):
    config = config_of(name, **changes)
    assert said in " ".join(refusals(find_architecture(config), config))


@pytest.mark.parametrize("head", ["query", "hidden"])
def test_gemmas_27b_scales_scores_by_the_hidden_size(head):
    """llama.cpp tells the 27B by its 46 (Gemma 3: 62) blocks."""
    scale = {"query": 16, "hidden": 24}[head]
    config = config_of(
        "gemma2",
        num_hidden_layers=46,
        layer_types=["sliding_attention", "full_attention"] * 23,
        hidden_size=96,
        query_pre_attn_scalar=scale,
    )
    assert bool(refusals(find_architecture(config), config)) == (head == "query")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gemma2", {"layer_types": None}),
        ("gemma2", {"layer_types": ["sliding_attention", "chunked_attention"]}),
        ("gemma2", {"sliding_window": None}),
        ("gemma3", {"layer_types": ["sliding_attention"]}),
        ("granite", {"residual_multiplier": 0}),
        ("qwen3_moe", {"num_local_experts": None}),
        ("phi3, long rope", {"original_max_position_embeddings": "x", "rope_parameters": {}}),
        ("gpt2", {"n_embd": "64"}),
        ("gpt2", {"n_layer": None}),
    ],
)
def test_configurations_that_make_no_sense(name, changes):
    config = config_of(name, **changes)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        hyperparameters(find_architecture(config), config)


@pytest.mark.parametrize(
    ("context", "original", "exact"),
    [(512, 256, True), (4096, 512, True), (100, 300, True), (512, 64, False), (512, 300, False)],
)
def test_an_original_context_must_hold_one_of_llama_cpps(context, original, exact):
    """Those are multiples of 256, and longer ones take the long frequencies."""
    config = config_of("phi3, long rope", original_max_position_embeddings=original)
    config["max_position_embeddings"] = context
    reasons = refusals(find_architecture(config), config)
    assert bool(reasons) != exact
    assert exact or f"more than the original {original}" in reasons[0]


def test_long_factors_must_be_one_for_each_pair():
    config = config_of("phi3, long rope")
    config["rope_parameters"]["long_factor"] = [1.0, "x"]
    with pytest.raises(CheckpointError, match="6 are needed"):
        find_architecture(config).computed(config)
    config["rope_parameters"]["long_factor"] = [1.0, "x", 1.0, 1.0, 1.0, 1.0]
    with pytest.raises(CheckpointError, match="positive number"):
        find_architecture(config).computed(config)


def test_interleaved_rows_are_a_permutation_within_heads():
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
    order = interleaved_rows(config, "model.layers.0.self_attn.k_proj")
    assert order[:4].tolist() == [0, 8, 1, 9]
    assert sorted(order.tolist()) == list(range(32))
    assert interleaved_rows(config, "model.layers.0.self_attn.v_proj") is None
    biased = interleaved_rows(config, "model.layers.0.self_attn.k_proj.bias")
    np.testing.assert_array_equal(biased, order)


def test_biases_that_the_loader_does_not_read_are_refused(tmp_path):
    config = CONFIGS["smollm3"]()
    config.attention_bias = True
    (refusal,) = gguf.plan(fused(config, tmp_path / "fused")).refusals
    assert "4 tensors have no name or no use in llama.cpp's smollm3" in refusal
    assert "o_proj.bias" in refusal


@pytest.mark.parametrize("keep", [(), ("experts",)], ids=["trained", "floating"])
def test_experts_are_stacked_and_their_gates_cut_off(keep, tmp_path):
    checkpoint = fused("qwen3_moe", tmp_path / "fused", keep=keep)
    sources = {s.name: s for s in find_sources(checkpoint, find_architecture(checkpoint.config))}
    stack = "model.layers.1.mlp.experts"
    joined = (
        checkpoint.floating(f"{stack}.gate_up_proj")
        if keep
        else np.stack(
            [checkpoint.quantized(f"{stack}.gate_up_proj.{i}").dequantize() for i in range(4)]
        )
    )
    for kind, rows in (("gate", slice(None, 32)), ("up", slice(32, None))):
        source = sources[f"blk.1.ffn_{kind}_exps.weight"]
        assert source.shape == (4, 32, 64)
        assert source.quantized == (not keep)
        found = source.read_values(checkpoint).reshape(source.shape)
        np.testing.assert_array_equal(found, joined[:, rows])
    router = next(t for t in gguf.plan(checkpoint).tensors if "ffn_gate_inp" in t.source.name)
    assert router.block.NAME == "f32"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda entries: entries["e.3"].update(grid="q8_0"), "several grids"),
        (lambda entries: entries.pop("e.2"), "not numbered"),
        (lambda entries: entries["e.1"].update(shape=[64, 64]), "shapes"),
    ],
)
def test_experts_that_do_not_belong_together(edit, said, tmp_path):
    checkpoint = fused("qwen3_moe", tmp_path / "fused")
    stack = "model.layers.0.mlp.experts.down_proj"
    short = {name.replace(stack, "e"): e for name, e in checkpoint.manifest["tensors"].items()}
    edit(short)
    checkpoint.manifest["tensors"] = {
        n.replace("e.", f"{stack}.", 1) if n.startswith("e.") else n: e for n, e in short.items()
    }
    with pytest.raises(CheckpointError, match=said):
        gguf.plan(checkpoint)


def test_norm_weights_get_the_offset_in_float32(tmp_path):
    checkpoint = fused("gemma3", tmp_path / "fused")
    name = "model.layers.0.self_attn.q_norm.weight"
    sources = find_sources(checkpoint, find_architecture(checkpoint.config))
    source = next(s for s in sources if s.origin == name)
    own = torch.from_numpy(checkpoint.floating(name))
    np.testing.assert_array_equal(source.read_values(checkpoint)[0], (1.0 + own.float()).numpy())
    others = [s for s in sources if not s.name.endswith("norm.weight")]
    assert not any(s.offset for s in others)
