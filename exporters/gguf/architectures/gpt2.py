"""GPT-2: positions in a table, biases everywhere, q, k and v in one matrix.

Its matrices are transposed in a Hugging Face folder (`lrqat.architectures`); trained ones are
(out, in) in the checkpoint.
Source: conversion/gpt2.py, src/models/gpt2.cpp.
"""

from gguf import MODEL_ARCH

from exporters.gguf.architecture import Architecture, Config, biases, weights
from exporters.gguf.graph.gemma import GELU

_KINDS = ("attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down")
# What would change the attention, and the value that llama.cpp's graph has.
_FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def _read(config: Config) -> Config:
    hidden = config.get("n_embd")
    return {
        **config,
        "hidden_size": hidden,
        "intermediate_size": config.get("n_inner") or (4 * hidden if hidden else None),
        "num_hidden_layers": config.get("n_layer"),
        "num_attention_heads": config.get("n_head"),
        "max_position_embeddings": config.get("n_positions"),
        "hidden_act": config.get("activation_function"),
    }


def _refuses(config: Config) -> list[str]:
    return [
        f"{key} is {config[key]}; llama.cpp's graph has {value}"
        for key, value in _FIXED.items()
        if config.get(key, value) != value
    ]


ARCHITECTURE = Architecture(
    hf_names=("GPT2LMHeadModel",),
    arch=MODEL_ARCH.GPT2,
    block=(*weights(*_KINDS), *biases(*_KINDS)),
    once=(*weights("token_embd", "position_embd", "output_norm"), *biases("output_norm")),
    activation=GELU,
    rope_types=(),
    whole_heads=True,
    epsilon=("layer_norm_epsilon", "layer_norm_epsilon"),
    read=_read,
    refuses=_refuses,
)
