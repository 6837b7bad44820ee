"""Qwen2: Llama with biases on q, k and v, and rows in Hugging Face's order.

Source: conversion/qwen.py, src/models/qwen2.cpp.
"""

from gguf import MODEL_ARCH

from exporters.gguf.architecture import LLAMA_BLOCK, Architecture, biases, weights

ARCHITECTURE = Architecture(
    hf_names=("Qwen2ForCausalLM",),
    arch=MODEL_ARCH.QWEN2,
    block=weights(*LLAMA_BLOCK),
    optional=biases("attn_q", "attn_k", "attn_v"),
    whole_heads=True,
)
