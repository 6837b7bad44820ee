"""Phi-3 and Phi-4: Llama with q, k, v in one matrix, and gate, up; long contexts by factors.

LongRoPE has two sets of frequencies. transformers takes the long ones for a text longer than the
original context, llama.cpp for a context allocated longer than that, whatever the text. The file's
own context is the original one, so that a runtime that follows it computes what was trained. Since
llama.cpp makes every context a multiple of 256, the original one must leave room for that.
Source: conversion/phi.py, src/models/phi3.cpp, `get_rope_factors` in src/llama-model.cpp,
src/llama-context.cpp (GGML_PAD of n_ctx).
"""

import math

import numpy as np
from gguf import MODEL_ARCH
from numpy.typing import NDArray

from exporters.gguf.architecture import Architecture, Config, weights
from exporters.gguf.file import key_values as kv
from exporters.gguf.file.key_values import KeyValue
from exporters.gguf.graph.config_values import (
    original_context,
    positive_float,
    positive_int,
    read_heads,
    rope_parameters,
    rotated_elements,
)
from lrqat.errors import CheckpointError

_CONTEXT_STEP = 256
_FACTORS = {"rope_factors_long.weight": "long_factor", "rope_factors_short.weight": "short_factor"}


def _is_long(config: Config) -> bool:
    return bool(rope_parameters(config)["rope_type"] == "longrope")


def _contexts(config: Config) -> tuple[int, int]:
    """The longest context, and the one of the original training."""
    return positive_int(config, "max_position_embeddings"), original_context(config)


def _refuses(config: Config) -> list[str]:
    rotated, size = rotated_elements(config), read_heads(config).size
    reasons = []
    if rotated % 2 or not 0 < rotated <= size:
        reasons.append(f"{rotated} of a head's {size} elements are rotated, which are no pairs")
    context, original = _contexts(config)
    stated = min(context, original)
    made = -(-stated // _CONTEXT_STEP) * _CONTEXT_STEP
    if _is_long(config) and made > original:
        reasons.append(
            f"llama.cpp makes a context of {made} positions where {stated} are asked for, which is "
            f"more than the original {original}: it would take the long frequencies for every text"
        )
    return reasons


def _hyperparameters(config: Config) -> list[KeyValue]:
    # llama.cpp ignores the window; one shorter than the context is refused before it matters.
    window = positive_int(config, "sliding_window") if config.get("sliding_window") else 0
    entries = [
        kv.count("rope.dimension_count", rotated_elements(config)),
        kv.count("attention.sliding_window", window),
    ]
    context, original = _contexts(config)
    entries.append(kv.count("rope.scaling.original_context_length", original))
    if _is_long(config):
        entries.append(kv.count("context_length", min(context, original)))
        entries.append(kv.single("rope.scaling.attn_factor", _attention_factor(config)))
    return entries


def _attention_factor(config: Config) -> float:
    """By what sines and cosines are multiplied (transformers `_compute_longrope_parameters`)."""
    rope, (context, original) = rope_parameters(config), _contexts(config)
    factor = positive_float(rope, "factor", context / original)
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 < original else 1.0
    return positive_float(rope, "attention_factor", usual)


def _computed(config: Config) -> dict[str, NDArray[np.float32]]:
    if not _is_long(config):
        return {}
    rope, pairs = rope_parameters(config), rotated_elements(config) // 2
    found = {}
    for name, key in _FACTORS.items():
        values = rope.get(key)
        if not isinstance(values, list) or len(values) != pairs:
            raise CheckpointError(f"config.json has {key} {str(values)[:80]}; {pairs} are needed")
        by_position = {str(i): value for i, value in enumerate(values)}
        checked = [positive_float(by_position, i) for i in by_position]
        found[name] = np.array(checked, np.float32)
    return found


def _notes(config: Config) -> list[str]:
    context, original = _contexts(config)
    if not _is_long(config) or context <= original:
        return []
    return [
        f"exact for texts of up to {original} tokens in contexts of as many positions, which the "
        "file states; and for longer texts, read at once, in longer contexts. There llama.cpp "
        "takes the long frequencies for short texts too, unlike transformers"
    ]


ARCHITECTURE = Architecture(
    hf_names=("Phi3ForCausalLM",),
    arch=MODEL_ARCH.PHI3,
    block=weights("attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down"),
    rope_types=("default", "longrope"),
    partial_rotation=True,
    whole_heads=True,
    refuses=_refuses,
    hyperparameters=_hyperparameters,
    computed=_computed,
    notes=_notes,
)
