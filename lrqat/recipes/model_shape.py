"""What llama-quantize asks of a model before it chooses types."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from lrqat.errors import RecipeError

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
# Names in config.json, the first that is there counts.
_LAYERS = ("num_hidden_layers", "n_layer")
_HEADS = ("num_attention_heads", "n_head")
_KV_HEADS = ("num_key_value_heads", *_HEADS)
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class ModelShape:
    """Names and shapes of a model's weights, and the numbers that types depend on.

    Attributes:
        shapes: module name, of a stack of experts parameter name -> (out, in) or (experts, out,
            in). A tied embedding and head are the embedding alone.
        layers: decoder blocks.
        heads: attention heads.
        kv_heads: key-value heads.
        experts: of a layer; 0 where there are none.
        tied: whether embedding and head are one weight.
        model_type: config.json's.
    """

    shapes: Mapping[str, tuple[int, ...]]
    layers: int
    heads: int
    kv_heads: int
    experts: int = 0
    tied: bool = False
    model_type: str = "llama"

    @classmethod
    def of(
        cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], tied: bool
    ) -> Self:
        """The shape of a model by its configuration.

        Args:
            config: the content of config.json.
            shapes: as the attribute.
            tied: as the attribute.

        Raises:
            RecipeError: the configuration lacks a number, or has another one for every layer.
        """
        text = config.get("text_config", config)
        return cls(
            shapes,
            layers=_number(text, _LAYERS),
            heads=_number(text, _HEADS),
            kv_heads=_number(text, _KV_HEADS),
            experts=_number(text, _EXPERTS, least=0),
            tied=tied,
            model_type=str(text.get("model_type", "")),
        )

    @property
    def sharing(self) -> int:
        """Attention heads that share a key-value head."""
        return self.heads // self.kv_heads


def layer_of(module: str) -> int:
    """The number of the layer that a module is in; -1 outside of layers."""
    number = _NUMBER.search(module)
    return int(number.group()) if number else -1


def _number(config: Mapping[str, Any], names: tuple[str, ...], least: int = 1) -> int:
    """The first of some entries that is there; `least` where none is, if that is 0."""
    present = [config[name] for name in names if config.get(name) is not None]
    found = present[0] if present else (0 if least == 0 else None)
    if isinstance(found, bool) or not isinstance(found, int) or found < least:
        raise RecipeError(
            f"config.json has {names[0]} {found!r:.100}, and llama-quantize's recipes go by one "
            "number for all layers; write the recipe yourself (docs/recipes.md)"
        )
    return found
