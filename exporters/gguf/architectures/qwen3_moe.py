"""Qwen3 with experts, which GGUF stacks: (experts, out, in) for gate, up and down.

transformers keeps gate and up of an expert in one matrix, gate first; its rows are halved. The
router stays float32, as in upstream's converter.
Source: conversion/qwen.py `Qwen2MoeModel`, src/models/qwen3moe.cpp.
"""

from gguf import MODEL_ARCH

from exporters.gguf.architecture import ATTENTION, Architecture, Config, biases, weights
from exporters.gguf.file import key_values as kv
from exporters.gguf.file.key_values import KeyValue
from exporters.gguf.graph.config_values import positive_int

_EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def _refuses(config: Config) -> list[str]:
    reasons = []
    if config.get("norm_topk_prob") is not True:
        reasons.append(
            "the weights of the chosen experts do not sum to 1 (norm_topk_prob); llama.cpp's do"
        )
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        reasons.append("some layers have no experts; llama.cpp's graph has them in all")
    return reasons


def _hyperparameters(config: Config) -> list[KeyValue]:
    experts = positive_int(config, "num_local_experts", config.get("num_experts"))
    return [
        kv.count("expert_count", experts),
        kv.count("expert_used_count", positive_int(config, "num_experts_per_tok")),
        kv.count("expert_feed_forward_length", positive_int(config, "moe_intermediate_size")),
    ]


ARCHITECTURE = Architecture(
    hf_names=("Qwen3MoeForCausalLM",),
    arch=MODEL_ARCH.QWEN3MOE,
    block=weights(
        "attn_norm", *ATTENTION, "attn_q_norm", "attn_k_norm", "ffn_norm", "ffn_gate_inp", *_EXPERTS
    ),
    optional=biases("attn_q", "attn_k", "attn_v"),
    scaled=weights(*ATTENTION, *_EXPERTS),
    splits={"experts.gate_up_proj": ("experts.gate_proj", "experts.up_proj")},
    refuses=_refuses,
    hyperparameters=_hyperparameters,
)  # fmt: skip
