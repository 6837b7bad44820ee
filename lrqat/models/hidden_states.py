"""Hidden states of a Hugging Face model, by names that every runtime's are compared under.

embedding     what enters the first decoder layer
layer 0 ...   what leaves each decoder layer: the residual stream
final norm    what the output head reads
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lrqat.errors import ModelError

EMBEDDING, FINAL_NORM = "embedding", "final norm"
# By name, float32 (n, width), in the order of computation.
HiddenStates = dict[str, NDArray[np.float32]]


def layer_name(index: int) -> str:
    """The name of what leaves decoder layer `index`."""
    return f"layer {index}"


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of a model are.

    Attributes:
        layers: name of its list of decoder layers: the weights of layer 0 begin with `layers`.0.
        count: how many there are.
        heads: name of the output head, and of the embedding where they share a weight.
    """

    layers: str
    count: int
    heads: tuple[str, ...]


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The list of the decoder layers of `model`, prepared or not, and its name.

    Raises:
        ModelError: it has none.
    """
    count = int(getattr(model.config.get_text_config(), "num_hidden_layers", 0))
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise ModelError(f"{type(model).__name__} has no list of {count} decoder layers")


def decoder(model: Any) -> nn.Module:
    """The part of `model` that its decoder layers are in, with the norm after them.

    Raises:
        ModelError: it has no decoder layers.
    """
    found: nn.Module = model.get_submodule(decoder_layers(model)[0].rpartition(".")[0])
    return found


def anatomy(model: Any) -> Anatomy:
    """Find the decoder layers and the head of `model`.

    Raises:
        ModelError: it has none.
    """
    layers, blocks = decoder_layers(model)
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no output head")
    weight = head.weight
    named = model.named_parameters(remove_duplicate=False)
    heads = (name.removesuffix(".weight") for name, parameter in named if parameter is weight)
    return Anatomy(layers, len(blocks), tuple(heads))


@torch.inference_mode()
def torch_hidden_states(model: Any, tokens: NDArray[np.int64]) -> HiddenStates:
    """The hidden states of `model` after each of `tokens` (n,), with an empty cache."""
    found: HiddenStates = {}

    def keep(name: str, module: Any, given: Any, made: Any = None) -> None:
        """Of a forward hook, what the module made; of one before it, what it was given."""
        state = given if made is None else made
        tensor = state[0] if isinstance(state, tuple) else state
        found[name] = tensor[0].float().cpu().numpy().copy()

    layers, head = model.get_submodule(anatomy(model).layers), model.get_output_embeddings()
    hooks = [layers[0].register_forward_pre_hook(partial(keep, EMBEDDING))]
    for i, layer in enumerate(layers):
        hooks.append(layer.register_forward_hook(partial(keep, layer_name(i))))
    hooks.append(head.register_forward_pre_hook(partial(keep, FINAL_NORM)))
    try:
        ids = torch.from_numpy(np.ascontiguousarray(tokens))[None]
        model(input_ids=ids.to(next(model.parameters()).device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found
