"""llama.cpp's GELU on a CPU: a table of half-precision values, also where all else is float32.

    gelu(x) = 0 for x <= -10,  x for x >= 10,  else  half(gelu_tanh(half(x)))

That moves the logits of Gemma and GPT-2 by some 1e-3 and is no property of a file, so a graph is
compared with PyTorch only once PyTorch does the same. What remains are activations so near the
border of two half-precision values that the two fall on different sides. On tiny models (logits of
standard deviation 0.9, two layers, 128 tokens) the mean |d logit| goes from 1.5e-4 to 3e-6 and the
median to 5e-7, as without GELU, but the largest, which is such an activation's, only from 1e-3 to
7e-5 .. 5e-4; with six layers, each of which has them, from 3e-3 to 1e-3, and the mean from 3e-4 to
4e-5. Prompts of two tokens have few of them: there the largest goes from 6e-4 .. 1e-3 to
8e-7 .. 5e-6 (median over prompts), and test_llama_cpp_gelu.py says so.
Source: ggml/src/ggml-cpu/vec.h `ggml_gelu_f32`, `ggml_vec_gelu_f32`, `ggml_vec_geglu_f32`
(GGML_GELU_FP16).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.activations import ACT2FN

_KINDS = tuple(type(ACT2FN[name]) for name in ("gelu_new", "gelu_pytorch_tanh"))
_SQRT_2_OVER_PI, _CUBIC = 0.79788456080286535587989211986876, 0.044715


def table_gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU of float32 `x` as llama.cpp computes it."""
    half = x.half().float()
    inner = _SQRT_2_OVER_PI * half * (1 + _CUBIC * half * half)  # in ggml_gelu_f32's order
    found = (0.5 * half * (1 + torch.tanh(inner))).half().float()
    return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, found))


@contextmanager
def with_table_gelu(model: Any) -> Iterator[int]:
    """Let `model` compute its GELUs (by tanh) as llama.cpp does; gives their number."""
    modules = [module for module in model.modules() if isinstance(module, _KINDS)]
    for module in modules:
        module.forward = table_gelu
    try:
        yield len(modules)
    finally:
        for module in modules:
            del module.forward
