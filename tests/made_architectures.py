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


def make(name, dtype=torch.float32):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(MODELS[name][0](), dtype=dtype)
    for module in model.modules():  # as made they are small or zero, and hide mistakes
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.1)
            elif own == "bias":
                nn.init.normal_(parameter, std=0.5)
    return model.eval()
