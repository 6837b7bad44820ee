"""YaRN: frequencies that are interpolated where they are slow, which llama.cpp's graphs compute.

    angle of pair i at position p = p * base^(-2i/n) * (m_i + (1 - m_i) / factor)
    m_i falls from 1 at pair `low` to 0 at pair `high`
    low, high = floor, ceil of n * ln(context / (2 pi beta)) / (2 ln base), beta = 32, 1

Sines and cosines are multiplied by an attention factor, 1 + ln(factor) / 10 unless config.json has
another one. llama.cpp computes that one itself and multiplies it by `rope.scaling.attn_factor`.
It has keys for beta and for the attention factor too, which upstream's converter writes, but the
loaders of these architectures do not read them.

Source: transformers `_compute_yarn_parameters`; llama.cpp's `llama_context::llama_context`,
ggml/src/ggml.c `ggml_rope_yarn_corr_dims`, ggml/src/ggml-cpu/ops.cpp `rope_yarn`.
"""

import math

from exporters.gguf.architecture import Config
from exporters.gguf.file import key_values as kv
from exporters.gguf.file.key_values import KeyValue
from exporters.gguf.graph.config_values import (
    original_context,
    positive_float,
    positive_int,
    rope_parameters,
    rotated_elements,
)
from lrqat.errors import CheckpointError

# llama_hparams; transformers has the same defaults.
_BETA = {"beta_fast": 32.0, "beta_slow": 1.0}
# llama.cpp computes the ends of the ramp in float32, some 1e-6 off, before it rounds them.
_NEAR = 1e-4


def yarn_entries(config: Config) -> list[KeyValue]:
    """The `rope.scaling.*` entries of a configuration whose rope type is yarn."""
    entries = [
        kv.text("rope.scaling.type", "yarn"),
        kv.single("rope.scaling.factor", _factor(config)),
        kv.count("rope.scaling.original_context_length", original_context(config)),
        *(kv.single(f"rope.scaling.yarn_{key}", value) for key, value in _BETA.items()),
    ]
    beyond = attention_beyond_usual(config)
    return entries + ([kv.single("rope.scaling.attn_factor", beyond)] if beyond != 1 else [])


def refuses_yarn(config: Config) -> list[str]:
    """What llama.cpp's graph computes otherwise than transformers; empty if nothing."""
    rope = rope_parameters(config)
    reasons = [
        f"{key} is {rope[key]}; llama.cpp's graph has {value:g}, whatever the file says"
        for key, value in _BETA.items()
        if (rope.get(key) or value) != value
    ]
    if not rope.get("truncate", True):
        reasons.append("truncate is false; llama.cpp rounds the ends of YaRN's ramp")
    low, high = (_pair(config, beta) for beta in _BETA.values())
    if any(abs(end - round(end)) < _NEAR for end in (low, high)):
        reasons.append(f"YaRN's ramp ends at {low:.6f} or {high:.6f}, too near a whole number")
    if high < 0 or math.floor(low) > rotated_elements(config) - 1:
        reasons.append(
            f"YaRN's ramp from pair {low:.1f} to {high:.1f} is empty, of which llama.cpp's "
            "graph makes something else than transformers"
        )
    return reasons


def attention_beyond_usual(config: Config) -> float:
    """The attention factor, divided by the one that llama.cpp computes itself."""
    rope, factor = rope_parameters(config), _factor(config)
    usual = found = _growth(factor, 1.0)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        numerator = _growth(factor, positive_float(rope, "mscale"))
        found = numerator / _growth(factor, positive_float(rope, "mscale_all_dim"))
    return positive_float(rope, "attention_factor", found) / usual


def _growth(factor: float, share: float) -> float:
    return 0.1 * share * math.log(factor) + 1 if factor > 1 else 1.0


def _factor(config: Config) -> float:
    ratio = positive_int(config, "max_position_embeddings") / original_context(config)
    return positive_float(rope_parameters(config), "factor", ratio)


def _pair(config: Config, turns: float) -> float:
    """Which pair turns so many times within the original context."""
    base = positive_float(rope_parameters(config), "rope_theta")
    if base <= 1:
        raise CheckpointError(f"config.json has rope_theta = {base}, which must be more than 1")
    wavelengths = original_context(config) / (turns * 2 * math.pi)
    return rotated_elements(config) * math.log(wavelengths) / (2 * math.log(base))
