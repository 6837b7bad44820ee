"""Llama, and Mistral, which is the same graph.

Rows of q and k are interleaved and Llama 3's frequencies become a tensor
(`exporters.gguf.graph.rope`). Source: conversion/llama.py, src/models/llama.cpp.
"""

from gguf import MODEL_ARCH

from exporters.gguf.architecture import (
    ATTENTION,
    FEED_FORWARD,
    LLAMA_BLOCK,
    Architecture,
    biases,
    weights,
)
from exporters.gguf.graph.rope import interleaved_rows, llama3_divisors

ARCHITECTURE = Architecture(
    hf_names=("LlamaForCausalLM", "MistralForCausalLM"),
    arch=MODEL_ARCH.LLAMA,
    block=weights(*LLAMA_BLOCK),
    optional=biases(*ATTENTION, *FEED_FORWARD),
    scaled=weights(*ATTENTION, *FEED_FORWARD),
    rope_types=("default", "linear", "llama3", "yarn"),
    row_order=interleaved_rows,
    computed=llama3_divisors,
)
