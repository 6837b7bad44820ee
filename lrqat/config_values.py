"""The content of a config.json as transformers' classes of configurations take it."""

from typing import Any

# JSON has no infinity: transformers writes {"__float__": "Infinity"} (configuration_utils.py).
_TAG = "__float__"


def config_values(config: dict[str, Any]) -> dict[str, Any]:
    """`config` without what a quantized model adds to it, and with numbers that JSON has not."""
    return {key: _decoded(value) for key, value in config.items() if key != "quantization_config"}


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TAG} and value[_TAG] in ("Infinity", "-Infinity", "NaN"):
            return float(value[_TAG])
        return {key: _decoded(part) for key, part in value.items()}
    return [_decoded(part) for part in value] if isinstance(value, list) else value
