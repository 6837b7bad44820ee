"""What an entry of `exporters.gguf.architectures` says, and what most of them share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import gguf
import numpy as np
from numpy.typing import NDArray

from exporters.gguf.file.key_values import KeyValue

Config = dict[str, Any]
Rows = NDArray[np.intp]

# Kinds of tensor in a block of Llama, whose graph most others vary.
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
FEED_FORWARD = ("ffn_gate", "ffn_up", "ffn_down")
LLAMA_BLOCK = ("attn_norm", *ATTENTION, "ffn_norm", *FEED_FORWARD)


def weights(*kinds: str) -> tuple[str, ...]:
    """Names of the weights of `kinds`."""
    return tuple(f"{kind}.weight" for kind in kinds)


def biases(*kinds: str) -> tuple[str, ...]:
    """Names of the biases of `kinds`."""
    return tuple(f"{kind}.bias" for kind in kinds)


def _keeps_order(config: Config, name: str) -> Rows | None:
    return None


@dataclass(frozen=True)
class Architecture:
    """One entry of the table. The functions get the configuration that `read` returns.

    Attributes:
        hf_names: values of config.json's `architectures` that it serves.
        arch: llama.cpp's architecture; names of tensors and metadata follow from it.
        block: tensors of a block without which its loader fails, such as "attn_q.weight".
        optional: tensors of a block that its graph uses if they are there. All others are refused.
        once: tensors outside the blocks without which its loader fails.
        head: whether its loader takes an output head or, without one, the embedding ("either");
            only ever the embedding ("tied"); or needs a head, so that a tied one is written twice
            ("stored").
        activation: names of the activation function that its graph computes.
        rope_types: what its graph can do to rotary frequencies; empty where it rotates nothing.
        partial_rotation: whether it can rotate a part of each head.
        whole_heads: whether heads must fill the hidden size (its loader expects them to).
        windows: whether its graph computes sliding windows; the others attend to everything.
        epsilon: config.json's name of the norms' epsilon, and llama.cpp's.
        scaled: weights of a block that its graph multiplies with a scale of the whole tensor
            (`exporters.gguf.tensors.weight_scales`).
        norm_offset: what is added to the weights of norms, which its graph does not do.
        splits: part of a name -> those of the equal parts that its rows are cut into.
        read: config.json -> the same with Llama's names for what has another one.
        refuses: config -> what its graph cannot compute (empty: nothing), beyond the usual.
        hyperparameters: config -> metadata beyond the usual, keys without the architecture's name;
            a usual key is replaced.
        row_order: (config, name of a module or tensor without ".weight") -> source row of each row
            of the GGUF tensor, or None if rows keep their order.
        computed: config -> tensors that no checkpoint holds, float32 by GGUF name.
        notes: config -> what a user should know.
    """

    hf_names: tuple[str, ...]
    arch: gguf.MODEL_ARCH
    block: tuple[str, ...]
    optional: tuple[str, ...] = ()
    once: tuple[str, ...] = weights("token_embd", "output_norm")
    head: Literal["either", "tied", "stored"] = "either"
    activation: tuple[str, ...] = ("silu",)
    rope_types: tuple[str, ...] = ("default", "linear", "yarn")
    partial_rotation: bool = False
    whole_heads: bool = False
    windows: bool = False
    epsilon: tuple[str, str] = ("rms_norm_eps", "layer_norm_rms_epsilon")
    scaled: tuple[str, ...] = weights(*ATTENTION, "attn_qkv")
    norm_offset: float = 0.0
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    read: Callable[[Config], Config] = dict
    refuses: Callable[[Config], list[str]] = lambda config: []
    hyperparameters: Callable[[Config], list[KeyValue]] = lambda config: []
    row_order: Callable[[Config, str], Rows | None] = _keeps_order
    computed: Callable[[Config], dict[str, NDArray[np.float32]]] = lambda config: {}
    notes: Callable[[Config], list[str]] = lambda config: []

    @property
    def name(self) -> str:
        """The value of general.architecture."""
        return gguf.MODEL_ARCH_NAMES[self.arch]

    def required_names(self, blocks: int) -> list[str]:
        """GGUF names of what a model of `blocks` blocks cannot do without."""
        return [*self.once, *_in_blocks(self.block, blocks)]

    def known_names(self, blocks: int) -> set[str]:
        """GGUF names of all that its loader reads from a checkpoint of `blocks` blocks."""
        head = () if self.head == "tied" else weights("output")
        return {*self.required_names(blocks), *_in_blocks(self.optional, blocks), *head}


def _in_blocks(names: tuple[str, ...], blocks: int) -> list[str]:
    return [f"blk.{block}.{name}" for block in range(blocks) for name in names]
