"""A model of 16-bit weights that computes in float32 for a while, with one block of it wide.

What a run reports, and what it chooses the best state by, is measured in float32 whatever it
computed its steps in: the bfloat16 of a forward pass alone is a KL of about 1e-3, more than a
whole 8-bit grid costs.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lrqat.errors import ModelError
from lrqat.layers.embedding import LRQATEmbedding
from lrqat.layers.experts import LRQATExperts
from lrqat.models.hidden_states import decoder_layers

_NARROW = (torch.bfloat16, torch.float16)
_WITH_DTYPE = LRQATEmbedding | LRQATExperts  # these compute in the type that they were told


@contextlib.contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Inside, `model` computes in float32 with its weights as they are, and gives them back.

    Each decoder block is widened while it runs, so that a model which fills a device still fits;
    what is outside of the blocks, all the time.
    """
    blocks = _blocks(model)
    inside = {id(module) for block in blocks for module in block.modules()}
    outside = _Widening([module for module in model.modules() if id(module) not in inside])
    with contextlib.ExitStack() as stack:
        for block in blocks:
            widening = _Widening(list(block.modules()))
            if widening.anything:
                stack.callback(block.register_forward_pre_hook(widening.begin).remove)
                hook = block.register_forward_hook(widening.end, always_call=True)
                stack.callback(hook.remove)
        outside.begin()
        stack.callback(outside.end)
        yield


def _blocks(model: Any) -> list[nn.Module]:
    try:
        return list(decoder_layers(model)[1])
    except ModelError:
        return []


class _Widening:
    """The narrow tensors of some modules, and what they are for a while."""

    def __init__(self, parts: list[nn.Module]) -> None:
        self._tensors = list(dict.fromkeys(t for module in parts for t in _narrow(module)))
        self._told = [m for m in parts if isinstance(m, _WITH_DTYPE) and m.dtype in _NARROW]
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._dtypes: list[torch.dtype] = []

    @property
    def anything(self) -> bool:
        return bool(self._tensors or self._told)

    def begin(self, *_: Any) -> None:
        self._kept = [(tensor, tensor.data) for tensor in self._tensors]
        self._dtypes = [module.dtype for module in self._told]
        for tensor, narrow in self._kept:
            tensor.data = narrow.float()
        for module in self._told:
            module.dtype = torch.float32

    def end(self, *_: Any) -> None:
        for tensor, narrow in self._kept:
            tensor.data = narrow
        for module, dtype in zip(self._told, self._dtypes, strict=True):
            module.dtype = dtype
        self._kept, self._dtypes = [], []


def _narrow(module: nn.Module) -> Iterator[Tensor]:
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    # Phi0 and the units of a trained weight are decoded to float32 where they are used.
    return (t for name, t in own if name not in ("phi", "unit") and t.dtype in _NARROW)
