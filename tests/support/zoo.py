"""Tiny random models of the architectures of Hugging Face, and what a layer of each holds."""

import torch
import transformers as hf
from torch import nn

VOCABULARY = 288
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
HEAD_DIM = SIZES | {"head_dim": 16}
MOE = HEAD_DIM | {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 3}
SHARED = SIZES | {
    "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 32,
}  # fmt: skip
GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
NEOX = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}

ATTENTION = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
SEPARATE = [*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
PHI3 = ["self_attn.o_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj"]
SHARED_EXPERT = [f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")]
LLAMA_NAMES = ("model.layers", "model.embed_tokens", "lm_head")

# name -> configuration, (layers, embedding, head), what a layer holds
MODELS = {
    "llama": (lambda: hf.LlamaConfig(**SIZES), LLAMA_NAMES, SEPARATE),
    "mistral": (lambda: hf.MistralConfig(**SIZES), LLAMA_NAMES, SEPARATE),
    "qwen2": (lambda: hf.Qwen2Config(**SIZES), LLAMA_NAMES, SEPARATE),
    "qwen3": (lambda: hf.Qwen3Config(**HEAD_DIM, tie_word_embeddings=True), LLAMA_NAMES, SEPARATE),
    "qwen3_moe": (lambda: hf.Qwen3MoeConfig(**MOE), LLAMA_NAMES, [*ATTENTION, *STACKS]),
    "qwen2_moe": (
        lambda: hf.Qwen2MoeConfig(**SHARED), LLAMA_NAMES, [*ATTENTION, *STACKS, *SHARED_EXPERT],
    ),
    "gemma2": (lambda: hf.Gemma2Config(**HEAD_DIM), LLAMA_NAMES, SEPARATE),
    "gemma3": (lambda: hf.Gemma3TextConfig(**HEAD_DIM), LLAMA_NAMES, SEPARATE),
    "phi3": (lambda: hf.Phi3Config(**SIZES), LLAMA_NAMES, PHI3),
    "granite": (
        lambda: hf.GraniteConfig(**SIZES, embedding_multiplier=3.0, logits_scaling=2.0),
        LLAMA_NAMES, SEPARATE,
    ),
    "smollm3": (lambda: hf.SmolLM3Config(**SIZES), LLAMA_NAMES, SEPARATE),
    "olmo2": (lambda: hf.Olmo2Config(**SIZES), LLAMA_NAMES, SEPARATE),
    "gpt2": (
        lambda: hf.GPT2Config(**GPT2), ("transformer.h", "transformer.wte", "lm_head"),
        ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    ),
    "gpt_neox": (
        lambda: hf.GPTNeoXConfig(**NEOX), ("gpt_neox.layers", "gpt_neox.embed_in", "lm_head"),
        ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
    ),
}  # fmt: skip
TIED = {"qwen3", "gemma2", "gemma3", "smollm3", "gpt2"}

# Configurations that llama.cpp's graphs compute, one of every kind; windows shorter than a prompt.
GEMMA = HEAD_DIM | {"query_pre_attn_scalar": 16, "sliding_window": 20}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
GEMMA3_ROPE = {
    "full_attention": LINEAR_ROPE | {"rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
LONG_ROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0],
    "long_factor": [1.0, 1.5, 2.0, 4.0, 8.0, 16.0],
}  # fmt: skip
EXTENDED = {"max_position_embeddings": 256}
YARN_ROPE = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN_SAID = YARN_ROPE | {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
YARN_SCALES = YARN_ROPE | {"mscale": 0.7, "mscale_all_dim": 1.5}
GRANITE = SIZES | {
    "embedding_multiplier": 3.0, "logits_scaling": 2.0, "attention_multiplier": 0.3,
    "residual_multiplier": 0.7,
}  # fmt: skip
IN_LLAMA_CPP = {
    "llama": lambda: hf.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama, llama3 rope": lambda: hf.LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE),
    "llama, yarn": lambda: hf.LlamaConfig(**SIZES | EXTENDED, rope_parameters=YARN_ROPE),
    "llama, yarn scales": lambda: hf.LlamaConfig(**SIZES | EXTENDED, rope_parameters=YARN_SCALES),
    "mistral": lambda: hf.MistralConfig(**SIZES | {"head_dim": 32}, sliding_window=None),
    "qwen2": lambda: hf.Qwen2Config(**SIZES),
    "qwen2, yarn": lambda: hf.Qwen2Config(
        **SIZES | EXTENDED, rope_parameters=YARN_ROPE | {"attention_factor": 0.8}
    ),
    "qwen3": lambda: hf.Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True),
    "qwen3, linear rope": lambda: hf.Qwen3Config(**HEAD_DIM, rope_parameters=LINEAR_ROPE),
    "qwen3, yarn": lambda: hf.Qwen3Config(**HEAD_DIM | EXTENDED, rope_parameters=YARN_SAID),
    "qwen3_moe, yarn": lambda: hf.Qwen3MoeConfig(
        **MOE | EXTENDED, norm_topk_prob=True, rope_parameters=YARN_ROPE
    ),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(**MOE, norm_topk_prob=True),
    "gemma2": lambda: hf.Gemma2Config(**GEMMA),
    "gemma2, yarn": lambda: hf.Gemma2Config(**GEMMA | EXTENDED, rope_parameters=YARN_ROPE),
    "gemma3, yarn": lambda: hf.Gemma3TextConfig(
        **GEMMA | EXTENDED, layer_types=["sliding_attention", "full_attention"],
        rope_parameters=GEMMA3_ROPE | {"full_attention": YARN_ROPE},
    ),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **GEMMA, layer_types=["sliding_attention", "full_attention"], rope_parameters=GEMMA3_ROPE
    ),
    "gemma3, six layers": lambda: hf.Gemma3TextConfig(
        **GEMMA | {"num_hidden_layers": 6}, final_logit_softcapping=5.0, tie_word_embeddings=False
    ),
    "phi3": lambda: hf.Phi3Config(**SIZES),
    "phi3, long rope": lambda: hf.Phi3Config(
        **SIZES | {"max_position_embeddings": 512}, rope_parameters=LONG_ROPE,
        original_max_position_embeddings=256,
    ),
    "granite, yarn": lambda: hf.GraniteConfig(**GRANITE | EXTENDED, rope_parameters=YARN_ROPE),
    "granite": lambda: hf.GraniteConfig(**GRANITE, attention_bias=True, mlp_bias=True),
    "granite, llama3 rope": lambda: hf.GraniteConfig(
        **GRANITE, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True
    ),
    "smollm3": lambda: hf.SmolLM3Config(**SIZES | {"num_hidden_layers": 4}),
    "smollm3, yarn": lambda: hf.SmolLM3Config(
        **SIZES | EXTENDED | {"num_hidden_layers": 4}, rope_parameters=YARN_ROPE
    ),
    "olmo2": lambda: hf.Olmo2Config(**SIZES),
    "olmo2, yarn": lambda: hf.Olmo2Config(**SIZES | EXTENDED, rope_parameters=YARN_ROPE),
    "olmo2, tied": lambda: hf.Olmo2Config(**SIZES, tie_word_embeddings=True),
    "gpt2": lambda: hf.GPT2Config(**GPT2),
    "gpt2, n_inner": lambda: hf.GPT2Config(**GPT2, n_inner=96, tie_word_embeddings=False),
}  # fmt: skip

# One of every architecture in ONNX: windows shorter than a prompt, caps that bend the logits.
IN_ONNX = {
    "llama": IN_LLAMA_CPP["llama, llama3 rope"],
    "mistral": lambda: hf.MistralConfig(**SIZES | {"head_dim": 32}, sliding_window=20),
    "qwen2": IN_LLAMA_CPP["qwen2"],
    "qwen3": IN_LLAMA_CPP["qwen3"],
    "gemma2": lambda: hf.Gemma2Config(
        **GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=5.0
    ),
    "gemma3": IN_LLAMA_CPP["gemma3"],
    "phi3": lambda: hf.Phi3Config(**SIZES, sliding_window=20),
    "phi3, long rope": lambda: hf.Phi3Config(
        **SIZES, rope_parameters=LONG_ROPE, original_max_position_embeddings=64
    ),
    "granite": IN_LLAMA_CPP["granite"],
    "smollm3": IN_LLAMA_CPP["smollm3"],
    "olmo2": IN_LLAMA_CPP["olmo2"],
    "gpt2": IN_LLAMA_CPP["gpt2"],
}  # fmt: skip


def make(name, dtype=torch.float32):
    return make_from(MODELS[name][0](), dtype)


def make_from(config, dtype=torch.float32):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config, dtype=dtype)
    for module in model.modules():  # as made they are small, zero or one, and hide mistakes
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.1)
            elif own == "bias":
                nn.init.normal_(parameter, std=0.5)
            else:  # a norm's, around one or, where the model adds one, around zero
                parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()
