"""Qwen3: Llama with norms of each head of q and k, and rows in Hugging Face's order.

Source: conversion/qwen.py, src/models/qwen3.cpp.
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

ARCHITECTURE = Architecture(
    hf_names=("Qwen3ForCausalLM",),
    arch=MODEL_ARCH.QWEN3,
    block=weights(*LLAMA_BLOCK, "attn_q_norm", "attn_k_norm"),
    optional=biases("attn_q", "attn_k", "attn_v"),
    scaled=weights(*ATTENTION, *FEED_FORWARD),
)
