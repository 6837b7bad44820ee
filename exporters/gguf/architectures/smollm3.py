"""SmolLM3: Llama whose every fourth layer does not rotate.

Source: conversion/llama.py `SmolLM3Model`, src/models/smollm3.cpp.
"""

from gguf import MODEL_ARCH

from exporters.gguf.architecture import LLAMA_BLOCK, Architecture, Config, biases, weights
from exporters.gguf.graph.config_values import positive_int
from exporters.gguf.graph.rope import interleaved_rows

_STEP = 4  # n_no_rope_layer_step, which no key sets


def _refuses(config: Config) -> list[str]:
    blocks = positive_int(config, "num_hidden_layers")
    rotated, known = config.get("no_rope_layers"), [i % _STEP != _STEP - 1 for i in range(blocks)]
    if isinstance(rotated, list) and [bool(each) for each in rotated] == known:
        return []
    return [f"no_rope_layers is {rotated}; llama.cpp's graph rotates all but every {_STEP}th layer"]


ARCHITECTURE = Architecture(
    hf_names=("SmolLM3ForCausalLM",),
    arch=MODEL_ARCH.SMOLLM3,
    block=weights(*LLAMA_BLOCK),
    optional=biases("attn_q", "attn_k", "attn_v"),
    refuses=_refuses,
    row_order=interleaved_rows,
)
