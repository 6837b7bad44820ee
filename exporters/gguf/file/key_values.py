"""Typed metadata of a GGUF file: keys, values, and the type each is stored in.

The type is always explicit: left to the writer, a Python int or an all-integer list of floats would
pick a type by its value. Source: ggml/include/gguf.h.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gguf import GGUFValueType as Type


@dataclass(frozen=True)
class KeyValue:
    """One entry.

    Attributes:
        key: as in llama.cpp's src/llama-arch.cpp.
        value: a str, bool, int or float, or a list of one of those.
        type: how it is stored.
        item: for an array, how its items are stored.
    """

    key: str
    value: Any
    type: Type
    item: Type | None = None


def text(key: str, value: str) -> KeyValue:
    """A UTF-8 string."""
    return KeyValue(key, value, Type.STRING)


def flag(key: str, value: bool) -> KeyValue:
    """A boolean."""
    return KeyValue(key, value, Type.BOOL)


def count(key: str, value: int) -> KeyValue:
    """An unsigned 32-bit integer."""
    return KeyValue(key, value, Type.UINT32)


def count64(key: str, value: int) -> KeyValue:
    """An unsigned 64-bit integer."""
    return KeyValue(key, value, Type.UINT64)


def single(key: str, value: float) -> KeyValue:
    """A 32-bit float."""
    return KeyValue(key, value, Type.FLOAT32)


def double(key: str, value: float) -> KeyValue:
    """A 64-bit float."""
    return KeyValue(key, value, Type.FLOAT64)


def array(key: str, values: Sequence[Any], item: Type) -> KeyValue:
    """An array; it must not be empty, which the format's readers do not agree on."""
    if not values:
        raise ValueError(f"{key} would be an empty array")
    return KeyValue(key, list(values), Type.ARRAY, item)
