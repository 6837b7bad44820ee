"""Reading config.json, which is hostile until it has been looked at."""

import math
from typing import Any, NamedTuple

from lrqat.errors import CheckpointError


def positive_int(config: dict[str, Any], key: str, default: int | None = None) -> int:
    """`config[key]`, or `default` where it is absent or null. Raises CheckpointError otherwise."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31:
        return value
    raise CheckpointError(f"config.json has {key} = {value!r}, which must be a positive integer")


def positive_float(config: dict[str, Any], key: str, default: float | None = None) -> float:
    """`config[key]`, or `default` where it is absent or null. Raises CheckpointError otherwise."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise CheckpointError(f"config.json has {key} = {value!r}, which must be a positive number")


def rope_parameters(config: dict[str, Any], layers: str = "full_attention") -> dict[str, Any]:
    """The rotary embedding's settings in the newer form: one object with rope_type and rope_theta.

    Older files spread them over `rope_theta` and `rope_scaling`; models with two kinds of layers
    have one object for each, of which that of `layers` is taken. Raises CheckpointError when they
    are not objects.
    """
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(found, dict) and layers in found:
        found = found[layers]
    if not isinstance(found, dict):
        raise CheckpointError(f"config.json has rope parameters {found!r}; an object is needed")
    kind = found.get("rope_type", found.get("type", "default"))
    theta = found.get("rope_theta", config.get("rope_theta"))
    return {**found, "rope_type": kind, "rope_theta": theta}


def original_context(config: dict[str, Any]) -> int:
    """Positions of the context that the model had before its frequencies were scaled.

    Where transformers looks for it: beside the rope parameters, then in them, else all positions.
    """
    key = "original_max_position_embeddings"
    beside, within = config.get(key), rope_parameters(config).get(key)
    found = within if beside is None else beside
    return positive_int({key: found}, key, positive_int(config, "max_position_embeddings"))


class Heads(NamedTuple):
    """Query heads, key-value heads, and elements of a head."""

    query: int
    key_value: int
    size: int


def read_heads(config: dict[str, Any]) -> Heads:
    """The attention heads of `config`."""
    heads = positive_int(config, "num_attention_heads")
    size = positive_int(config, "head_dim", positive_int(config, "hidden_size") // heads)
    return Heads(heads, positive_int(config, "num_key_value_heads", heads), size)


def rotated_elements(config: dict[str, Any]) -> int:
    """How many elements of a head are rotated."""
    share = positive_float(rope_parameters(config), "partial_rotary_factor", 1.0)
    return int(read_heads(config).size * share)


def sliding_layers(config: dict[str, Any]) -> list[bool]:
    """For every block whether it attends to the last `sliding_window` positions alone.

    Raises CheckpointError if `layer_types` is not a list of the two kinds that there are.
    """
    blocks = positive_int(config, "num_hidden_layers")
    if config.get("sliding_window") is None or config.get("use_sliding_window") is False:
        return [False] * blocks
    kinds = config.get("layer_types") or ["sliding_attention"] * blocks
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != blocks or any(k not in known for k in kinds):
        raise CheckpointError(
            f"config.json has layer_types {str(kinds)[:80]}; {blocks} of {known} are needed"
        )
    return [kind == "sliding_attention" for kind in kinds]
