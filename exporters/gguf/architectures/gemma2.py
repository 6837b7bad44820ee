"""Gemma 2: norms around attention and feed-forward, soft caps, every other layer slides.

Hugging Face multiplies by 1 + the norms' weights; llama.cpp by the weights, so 1 is added, in
float32 as transformers does. The embedding's scale is in llama.cpp's graph.
Source: conversion/gemma.py, src/models/gemma2.cpp.
"""

from gguf import MODEL_ARCH

from exporters.gguf.architecture import Architecture, Config, biases, weights
from exporters.gguf.file import key_values as kv
from exporters.gguf.file.key_values import KeyValue
from exporters.gguf.graph.config_values import positive_float, positive_int
from exporters.gguf.graph.gemma import BLOCK, GELU, read, refuses_scale, sliding

_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
_BLOCKS_27B = 46


def _refuses(config: Config) -> list[str]:
    missing = [cap for cap in _CAPS if config.get(cap) is None]
    reasons = [f"{cap} is null; llama.cpp's graph always caps" for cap in missing]
    return reasons + refuses_scale(config, _BLOCKS_27B)


def _hyperparameters(config: Config) -> list[KeyValue]:
    caps = [kv.single(cap, positive_float(config, cap)) for cap in _CAPS]
    window = positive_int(config, "sliding_window")
    return [*caps, kv.count("attention.sliding_window", window), *sliding(config, every=2)]


ARCHITECTURE = Architecture(
    hf_names=("Gemma2ForCausalLM",),
    arch=MODEL_ARCH.GEMMA2,
    block=weights(*BLOCK),
    optional=biases("attn_q", "attn_k", "attn_v"),
    head="tied",
    activation=GELU,
    windows=True,
    norm_offset=1.0,
    read=read,
    refuses=_refuses,
    hyperparameters=_hyperparameters,
)
