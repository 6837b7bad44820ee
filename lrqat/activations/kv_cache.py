"""A quantised KV cache: keys and values rounded as attention reads them.

A key (after its rotary embedding) or value of one token and one head is `head_dim` numbers with a
range of their own, on the grid int8-token or int4-token: float32 step, integer zero-point, zero
exact, gradients straight through. Every token is rounded alone, so decoding with a cache computes
what one pass over all tokens does.

It goes through the attention interface of transformers: `quantize_kv_cache` switches the model to a
registered attention function that rounds keys and values and calls the function the model used
before. A model that calls its own code instead is found by a trial run, and refused.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lrqat.activations.grids import quantize
from lrqat.activations.table import find_activation_grid
from lrqat.errors import ModelError, UserError
from lrqat.layers.modes import evaluating

KV_BITS = (4, 8)
_BASES = ("sdpa", "eager")
_PREFIX, _PROBE = "lrqat_kv", "lrqat_probe"

Attention = Callable[..., tuple[Tensor, Tensor | None]]


def quantize_kv_cache(model: Any, bits: int) -> None:
    """Make `model` round keys and values to `bits` bits from now on, in place.

    The setting is part of the configuration object, not of config.json: a saved model does not
    carry it, and whoever loads one calls this again.

    Args:
        model: a Hugging Face causal LM whose attention is sdpa or eager.
        bits: 4 or 8.

    Raises:
        UserError: another number of bits, or another attention implementation.
        ModelError: the model's attention does not go through transformers' attention interface in
            every layer, or does not compute the same through it.
    """
    if bits not in KV_BITS:
        choices = " or ".join(map(str, KV_BITS))
        raise UserError(f"--kv-bits {bits} is not possible; choose {choices}")
    base = plain_attention(model)
    if base not in _BASES:
        raise UserError(
            f"the attention of the model is {base!r}, which cannot round its cache; load it with "
            'attn_implementation="sdpa" or "eager"'
        )
    _try(model, base)
    _switch(model, f"{_PREFIX}{bits}_{base}")


def restore_kv_cache(model: Any) -> None:
    """Undo `quantize_kv_cache`; nothing happens to a model that it was not called on."""
    _switch(model, plain_attention(model))


def kv_bits(model: Any) -> int | None:
    """Bits of the keys and values of `model`, None if they are not rounded."""
    name = str(model.config._attn_implementation)
    return next((n for n in KV_BITS if name.startswith(f"{_PREFIX}{n}_")), None)


def plain_attention(model: Any) -> str:
    """Name of the attention of `model` without the rounding: "sdpa", "eager" ..."""
    name = str(model.config._attn_implementation)
    return name.rpartition("_")[2] if name.startswith(_PREFIX) else name


def _rounding_attention(bits: int, base: str) -> Attention:
    grid = find_activation_grid(f"int{bits}-token")

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Keys and values (batch, kv_heads, tokens, head_dim), as the model's own function."""
        function = _base_function(module, base)
        return function(module, query, quantize(key, grid), quantize(value, grid), mask, **options)

    return attention


def _base_function(module: nn.Module, base: str) -> Attention:
    """The attention function called `base` that `module` would use."""
    if base in ALL_ATTENTION_FUNCTIONS:
        return ALL_ATTENTION_FUNCTIONS[base]
    # Eager attention is no entry of the interface: every modeling file has its own.
    function = getattr(sys.modules[type(module).__module__], f"{base}_attention_forward", None)
    if function is None:
        raise ModelError(
            f"{type(module).__name__} has no {base} attention that can be called with a rounded "
            "cache; leave out --kv-bits"
        )
    return function


def _register(name: str, base: str, attention: Attention) -> None:
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])


def _switch(model: Any, name: str) -> None:
    if model.config._attn_implementation != name:
        model.set_attn_implementation(name)


def _try(model: Any, base: str) -> None:
    """Run three tokens through the interface without rounding: same logits, every layer seen."""
    seen: set[int] = set()

    def probe(module: nn.Module, *args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        seen.add(id(module))
        return _base_function(module, base)(module, *args, **options)

    before = model.config._attn_implementation
    _switch(model, base)
    with evaluating(model):
        expected = _logits(model)
        _register(f"{_PROBE}_{base}", base, probe)
        try:
            _switch(model, f"{_PROBE}_{base}")
            found = _logits(model)
        finally:
            _switch(model, before)
    layers = model.config.get_text_config().num_hidden_layers
    if len(seen) != layers or not torch.equal(expected, found):
        raise ModelError(
            f"{type(model).__name__} cannot round its cache: {len(seen)} of its {layers} layers "
            "call transformers' attention interface"
            + ("" if torch.equal(expected, found) else ", and not with the same result")
            + "; leave out --kv-bits"
        )


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    ids = torch.tensor([[1, 2, 0]], device=next(model.parameters()).device)
    return model(input_ids=ids, use_cache=False).logits


for _base in _BASES:
    for _bits in KV_BITS:
        _register(f"{_PREFIX}{_bits}_{_base}", _base, _rounding_attention(_bits, _base))
