"""Gemma 3 (text): Gemma 2 without caps on attention, with norms of each head of q and k.

Five of six layers slide, with frequencies of their own.
Source: conversion/gemma.py, src/models/gemma3.cpp.
"""

from gguf import MODEL_ARCH

from exporters.gguf.architecture import Architecture, Config, biases, weights
from exporters.gguf.file import key_values as kv
from exporters.gguf.file.key_values import KeyValue
from exporters.gguf.graph.config_values import positive_float, positive_int, rope_parameters
from exporters.gguf.graph.gemma import BLOCK, GELU, read, refuses_scale, sliding
from exporters.gguf.graph.yarn import attention_beyond_usual

_BLOCKS_27B = 62


def _refuses(config: Config) -> list[str]:
    reasons = []
    if config.get("attn_logit_softcapping") is not None:
        reasons.append("attn_logit_softcapping is set; llama.cpp's graph has no such cap")
    local = rope_parameters(config, "sliding_attention")["rope_type"]
    if local != "default":
        reasons.append(f"rope type {local!r} in sliding layers; llama.cpp's graph has 'default'")
    if rope_parameters(config)["rope_type"] == "yarn" and attention_beyond_usual(config) != 1:
        reasons.append("an attention factor is set, which llama.cpp's sliding layers would get too")
    return reasons + refuses_scale(config, _BLOCKS_27B)


def _hyperparameters(config: Config) -> list[KeyValue]:
    cap, local = "final_logit_softcapping", rope_parameters(config, "sliding_attention")
    return [
        kv.count("attention.sliding_window", positive_int(config, "sliding_window")),
        *sliding(config, every=6),
        kv.single("rope.freq_base_swa", positive_float(local, "rope_theta")),
        *([kv.single(cap, positive_float(config, cap))] if config.get(cap) is not None else []),
    ]


ARCHITECTURE = Architecture(
    hf_names=("Gemma3ForCausalLM",),
    arch=MODEL_ARCH.GEMMA3,
    block=weights(*BLOCK, "attn_q_norm", "attn_k_norm"),
    optional=biases("attn_q", "attn_k", "attn_v"),
    activation=GELU,
    windows=True,
    norm_offset=1.0,
    read=read,
    refuses=_refuses,
    hyperparameters=_hyperparameters,
)
