"""Llama, and Mistral, which is the same graph.

llama.cpp rotates neighbouring pairs of a head's elements where Hugging Face rotates element i with
i + head_dim/2, so the rows of q and k (and their biases) are interleaved:

    GGUF row h*head_dim + 2*i + j   <-   Hugging Face row h*head_dim + j*head_dim/2 + i

Whole rows move, and a row's scales with them: nothing is rounded. Llama 3's piecewise frequencies
become the tensor `rope_freqs.weight`, by which llama.cpp divides them.

Source: conversion/llama.py, src/models/llama.cpp, transformers/modeling_rope_utils.py.
"""

import gguf
import numpy as np
from numpy.typing import NDArray

from exporters.gguf import key_values as kv
from exporters.gguf.architectures import Architecture, Config
from exporters.gguf.config_values import positive_float, positive_int, rope_parameters
from exporters.gguf.key_values import KeyValue
from lrqat.errors import CheckpointError

_ROPE_TYPES = ("default", "linear", "llama3")


def _heads(config: Config) -> tuple[int, int, int]:
    """Query heads, key-value heads and elements of a head."""
    heads = positive_int(config, "num_attention_heads")
    head_dim = positive_int(config, "head_dim", positive_int(config, "hidden_size") // heads)
    return heads, positive_int(config, "num_key_value_heads", heads), head_dim


def _refuses(config: Config) -> list[str]:
    reasons = []
    if config.get("hidden_act") != "silu":
        reasons.append(f"hidden_act is {config.get('hidden_act')!r}; llama.cpp's graph has silu")
    kind = rope_parameters(config)["rope_type"]
    if kind not in _ROPE_TYPES:
        reasons.append(f"rope type {kind!r} has no exact form yet; known are {_ROPE_TYPES}")
    window = config.get("sliding_window")
    context = positive_int(config, "max_position_embeddings")
    if window is not None and positive_int(config, "sliding_window") < context:
        reasons.append(
            f"attention slides over {window} of {context} positions, which llama.cpp's graph "
            f"ignores; set max_position_embeddings to {window} in config.json before training"
        )
    heads, kv_heads, head_dim = _heads(config)
    if heads % kv_heads or head_dim % 2:
        reasons.append(f"{heads} heads, {kv_heads} key-value heads of {head_dim} do not divide")
    return reasons


def _hyperparameters(config: Config) -> list[KeyValue]:
    heads, kv_heads, head_dim = _heads(config)
    rope = rope_parameters(config)
    entries = [
        kv.count("llama.vocab_size", positive_int(config, "vocab_size")),
        kv.count("llama.context_length", positive_int(config, "max_position_embeddings")),
        kv.count("llama.embedding_length", positive_int(config, "hidden_size")),
        kv.count("llama.block_count", positive_int(config, "num_hidden_layers")),
        kv.count("llama.feed_forward_length", positive_int(config, "intermediate_size")),
        kv.count("llama.attention.head_count", heads),
        kv.count("llama.attention.head_count_kv", kv_heads),
        kv.count("llama.attention.key_length", head_dim),
        kv.count("llama.attention.value_length", head_dim),
        kv.single("llama.attention.layer_norm_rms_epsilon", positive_float(config, "rms_norm_eps")),
        kv.count("llama.rope.dimension_count", head_dim),
        kv.single("llama.rope.freq_base", positive_float(rope, "rope_theta", 10000.0)),
    ]
    if rope["rope_type"] == "linear":
        entries.append(kv.text("llama.rope.scaling.type", "linear"))
        entries.append(kv.single("llama.rope.scaling.factor", positive_float(rope, "factor")))
    return entries


def _row_order(config: Config, name: str) -> NDArray[np.intp] | None:
    heads, kv_heads, head_dim = _heads(config)
    part = name.removesuffix(".bias").rpartition(".")[2]
    count = {"q_proj": heads, "k_proj": kv_heads}.get(part)
    if count is None:
        return None
    rows = np.arange(count * head_dim, dtype=np.intp).reshape(count, 2, head_dim // 2)
    return rows.swapaxes(1, 2).reshape(-1)


def _computed(config: Config) -> dict[str, NDArray[np.float32]]:
    rope = rope_parameters(config)
    if rope["rope_type"] != "llama3":
        return {}
    return {"rope_freqs.weight": _llama3_divisors(rope, _heads(config)[2])}


def _llama3_divisors(rope: Config, head_dim: int) -> NDArray[np.float32]:
    """By what each of head_dim/2 frequencies is divided, float32.

    1 for wavelengths that fit the original context often, `factor` for those that do not fit it,
    and in between the reciprocal of a linear blend of 1/factor and 1.
    """
    base = positive_float(rope, "rope_theta", 10000.0)
    factor = positive_float(rope, "factor")
    low = positive_float(rope, "low_freq_factor")
    high = positive_float(rope, "high_freq_factor")
    context = positive_int(rope, "original_max_position_embeddings")
    if high <= low:
        raise CheckpointError(f"config.json has high_freq_factor {high} <= low_freq_factor {low}")
    wavelength = 2 * np.pi * base ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = context / wavelength
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - share) / factor + share)).astype(np.float32)


ARCHITECTURE = Architecture(
    hf_names=("LlamaForCausalLM", "MistralForCausalLM"),
    arch=gguf.MODEL_ARCH.LLAMA,
    refuses=_refuses,
    hyperparameters=_hyperparameters,
    row_order=_row_order,
    computed=_computed,
    global_tensors=(gguf.MODEL_TENSOR.TOKEN_EMBD, gguf.MODEL_TENSOR.OUTPUT_NORM),
    block_tensors=(
        gguf.MODEL_TENSOR.ATTN_NORM,
        gguf.MODEL_TENSOR.ATTN_Q,
        gguf.MODEL_TENSOR.ATTN_K,
        gguf.MODEL_TENSOR.ATTN_V,
        gguf.MODEL_TENSOR.ATTN_OUT,
        gguf.MODEL_TENSOR.FFN_NORM,
        gguf.MODEL_TENSOR.FFN_GATE,
        gguf.MODEL_TENSOR.FFN_UP,
        gguf.MODEL_TENSOR.FFN_DOWN,
    ),
)
