"""Granite: Llama with four multipliers.

Source: conversion/granite.py, src/models/granite.cpp.
"""

from gguf import MODEL_ARCH

from exporters.gguf.architecture import (
    ATTENTION,
    FEED_FORWARD,
    LLAMA_BLOCK,
    Architecture,
    Config,
    biases,
    weights,
)
from exporters.gguf.file import key_values as kv
from exporters.gguf.file.key_values import KeyValue
from exporters.gguf.graph.config_values import positive_float
from exporters.gguf.graph.rope import interleaved_rows, llama3_divisors

_MULTIPLIERS = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


def _hyperparameters(config: Config) -> list[KeyValue]:
    return [kv.single(key, positive_float(config, own)) for key, own in _MULTIPLIERS.items()]


ARCHITECTURE = Architecture(
    hf_names=("GraniteForCausalLM",),
    arch=MODEL_ARCH.GRANITE,
    block=weights(*LLAMA_BLOCK),
    optional=biases(*ATTENTION, *FEED_FORWARD),
    rope_types=("default", "linear", "llama3", "yarn"),
    hyperparameters=_hyperparameters,
    row_order=interleaved_rows,
    computed=llama3_divisors,
)
