"""OLMo 2: norms after attention and feed-forward instead of before, and of all of q and k.

llama.cpp's loader needs a head, so a tied one is written twice.
Source: conversion/olmo.py, src/models/olmo2.cpp.
"""

from gguf import MODEL_ARCH

from exporters.gguf.architecture import ATTENTION, FEED_FORWARD, Architecture, biases, weights

_NORMS = ("attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm")

ARCHITECTURE = Architecture(
    hf_names=("Olmo2ForCausalLM",),
    arch=MODEL_ARCH.OLMO2,
    block=weights(*ATTENTION, *FEED_FORWARD, *_NORMS),
    optional=biases("attn_q", "attn_k", "attn_v"),
    head="stored",
    whole_heads=True,
)
