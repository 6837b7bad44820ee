"""Rotary embeddings: what llama.cpp needs moved or computed for them.

llama.cpp's "normal" rotation turns neighbouring pairs of a head's elements where Hugging Face turns
element i with i + head_dim/2, so for those architectures the rows of q and k (and their biases) are
interleaved:

    GGUF row h*head_dim + 2*i + j   <-   Hugging Face row h*head_dim + j*head_dim/2 + i

Whole rows move, and a row's scales with them: nothing is rounded.

Source: src/llama-model.cpp `llama_model_rope_type`; conversion/llama.py;
transformers/modeling_rope_utils.py.
"""

import numpy as np
from numpy.typing import NDArray

from exporters.gguf.architecture import Config, Rows
from exporters.gguf.graph.config_values import (
    positive_float,
    positive_int,
    read_heads,
    rope_parameters,
)
from lrqat.errors import CheckpointError


def interleaved_rows(config: Config, name: str) -> Rows | None:
    """`Architecture.row_order` of the architectures with the normal rotation."""
    heads = read_heads(config)
    part = name.removesuffix(".bias").rpartition(".")[2]
    count = {"q_proj": heads.query, "k_proj": heads.key_value}.get(part)
    if count is None:
        return None
    rows = np.arange(count * heads.size, dtype=np.intp).reshape(count, 2, heads.size // 2)
    return rows.swapaxes(1, 2).reshape(-1)


def llama3_divisors(config: Config) -> dict[str, NDArray[np.float32]]:
    """`Architecture.computed` where frequencies may be Llama 3's.

    They become the tensor rope_freqs.weight, float32 (head_dim / 2), by which llama.cpp divides
    each frequency: 1 for wavelengths that fit the original context often, `factor` for those that
    do not fit it, and in between the reciprocal of a linear blend of 1/factor and 1.
    """
    rope = rope_parameters(config)
    if rope["rope_type"] != "llama3":
        return {}
    head_dim = read_heads(config).size
    base = positive_float(rope, "rope_theta")
    factor = positive_float(rope, "factor")
    low = positive_float(rope, "low_freq_factor")
    high = positive_float(rope, "high_freq_factor")
    context = positive_int(rope, "original_max_position_embeddings")
    if high <= low:
        raise CheckpointError(f"config.json has high_freq_factor {high} <= low_freq_factor {low}")
    wavelength = 2 * np.pi * base ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    share = np.clip((context / wavelength - low) / (high - low), 0.0, 1.0)
    return {"rope_freqs.weight": (1 / ((1 - share) / factor + share)).astype(np.float32)}
