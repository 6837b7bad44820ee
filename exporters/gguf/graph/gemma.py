"""What the entries of Gemma share.

Source: src/models/gemma2.cpp, src/models/gemma3.cpp, `load_swa_pattern` in src/llama-model.cpp.
"""

import math

from gguf import GGUFValueType

from exporters.gguf.architecture import ATTENTION, FEED_FORWARD, Config
from exporters.gguf.file import key_values as kv
from exporters.gguf.file.key_values import KeyValue
from exporters.gguf.graph.config_values import (
    positive_float,
    positive_int,
    read_heads,
    sliding_layers,
)
from lrqat.errors import CheckpointError

BLOCK = (
    "attn_norm", *ATTENTION, "post_attention_norm", "ffn_norm", *FEED_FORWARD, "post_ffw_norm",
)  # fmt: skip
GELU = ("gelu_pytorch_tanh", "gelu_new")  # two names of the approximation by tanh


def read(config: Config) -> Config:
    """`config` with Llama's name for the activation."""
    return {**config, "hidden_act": config.get("hidden_activation", config.get("hidden_act"))}


def refuses_scale(config: Config, blocks_27b: int) -> list[str]:
    """Why scores are not scaled as llama.cpp does it: by head size, or in the 27B by hidden size.

    It takes a model of `blocks_27b` blocks for the 27B.
    """
    heads, blocks = read_heads(config), positive_int(config, "num_hidden_layers")
    expected = heads.size
    if blocks == blocks_27b:
        expected = positive_int(config, "hidden_size") // heads.query
    found = positive_float(config, "query_pre_attn_scalar")
    if math.isclose(found, expected):
        return []
    return [
        f"query_pre_attn_scalar is {found:g}; llama.cpp's graph has {expected} for a model of "
        f"{blocks} blocks"
    ]


def sliding(config: Config, every: int) -> list[KeyValue]:
    """Which layers slide, unless it is all but each `every`-th, which llama.cpp knows itself."""
    if not isinstance(config.get("layer_types"), list):
        raise CheckpointError("config.json has no layer_types; fuse again, which writes them")
    slides = sliding_layers(config)
    if slides == [i % every < every - 1 for i in range(len(slides))]:
        return []
    return [kv.array("attention.sliding_window_pattern", slides, GGUFValueType.BOOL)]
