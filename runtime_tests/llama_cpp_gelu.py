"""llama.cpp's GELU on a CPU: a table of half-precision values, also where all else is float32.

    gelu(x) = 0 for x <= -10,  x for x >= 10,  else  half(gelu_tanh(half(x)))

That moves the logits of Gemma and GPT-2 by some 1e-3 and is no property of a file, so a graph is
compared with PyTorch only once PyTorch does the same. What remains are activations so near the
border of two half-precision values that the two fall on different sides. On tiny models (logits of
standard deviation 0.9) the mean |d logit| goes from 1.5e-4 to 1.5e-6 and the median to 5e-7, as
without GELU, but the largest, which is such an activation's, only from 1e-3 to some 2e-4.
Source: ggml/src/ggml-cpu/vec.h `ggml_vec_gelu_f32`, `ggml_vec_geglu_f32` (GGML_GELU_FP16).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from transformers.activations import ACT2FN

_KINDS = tuple(type(ACT2FN[name]) for name in ("gelu_new", "gelu_pytorch_tanh"))
# Of the largest |d logit|, where 1e-4 holds for models without GELU.
GELU_BOUND = 1e-3


def table_gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU of float32 `x` as llama.cpp computes it."""
    halved = functional.gelu(x.half().float(), approximate="tanh").half().float()
    return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, halved))


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
