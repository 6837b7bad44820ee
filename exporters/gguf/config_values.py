"""Reading config.json, which is hostile until it has been looked at."""

import math
from typing import Any

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


def rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding's settings in the newer form: one object with rope_type and rope_theta.

    Older files spread them over `rope_theta` and `rope_scaling`. Raises CheckpointError when they
    are not objects.
    """
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, dict):
        raise CheckpointError(f"config.json has rope parameters {found!r}; an object is needed")
    kind = found.get("rope_type", found.get("type", "default"))
    theta = found.get("rope_theta", config.get("rope_theta"))
    return {**found, "rope_type": kind, "rope_theta": theta}
