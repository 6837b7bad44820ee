"""What a model file says of itself, the same form for every format.

The files come from anybody: texts are cut short and lose their control characters, and numbers that
JSON does not have become texts, before anything is shown.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

_MOST_CHARACTERS = 200
_MOST_ITEMS = 8
_MOST_NAMES = 10


@dataclass
class TypeTotal:
    """Tensors of one type.

    Attributes:
        tensors: how many.
        weights: their elements.
        bytes: their size in the file.
    """

    tensors: int = 0
    weights: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Description:
    """What was found.

    Attributes:
        kind: what it is: "GGUF", "ONNX", "ONNX, compact form" or "fused checkpoint".
        files: names of the model's files.
        bytes: their size.
        types: tensors by type.
        hyperparameters: of the architecture, as the file names them.
        vocabulary: what the file says of its tokens.
        provenance: where it comes from: `lrqat.*` and the like.
    """

    kind: str
    files: list[str]
    bytes: int
    types: dict[str, TypeTotal] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    vocabulary: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> int:
        """Number of tensors."""
        return sum(total.tensors for total in self.types.values())

    @property
    def weights(self) -> int:
        """Number of their elements."""
        return sum(total.weights for total in self.types.values())

    @property
    def bits_per_weight(self) -> float:
        """Mean over all tensors, scales included; 0 where there are none."""
        spent = sum(total.bytes for total in self.types.values())
        return 8 * spent / self.weights if self.weights else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        totals = {"tensors": self.tensors, "weights": self.weights}
        return asdict(self) | totals | {"bits_per_weight": self.bits_per_weight}


def totals(tensors: Iterable[tuple[str, int, int]]) -> dict[str, TypeTotal]:
    """Sum up tensors given as (type, weights, bytes), the largest type first."""
    found: dict[str, TypeTotal] = {}
    for kind, weights, nbytes in tensors:
        total = found.setdefault(plain(kind), TypeTotal())
        total.tensors += 1
        total.weights += weights
        total.bytes += nbytes
    return dict(sorted(found.items(), key=lambda item: -item[1].bytes))


def differing(compared: Mapping[str, int]) -> str:
    """Of mismatches by tensor, as `Format.verify` counts them: "12 weights in 1 of 75 tensors"."""
    wrong = sum(count > 0 for count in compared.values())
    tensors = f"{wrong:,} of {len(compared):,} tensors"
    return f"{_counted(sum(compared.values()), 'weight')} in {tensors}" if wrong else tensors


def worst(compared: Mapping[str, int]) -> list[str]:
    """Lines that name the tensors with most mismatches, and say how many are not named."""
    wrong = {name: count for name, count in compared.items() if count}
    order = sorted(wrong, key=lambda name: -wrong[name])
    lines = [f"{plain(name)}: {_counted(wrong[name], 'weight')}" for name in order[:_MOST_NAMES]]
    more = len(order) - len(lines)
    return lines + ([f"and {_counted(more, 'more tensor')}; --json names all"] if more else [])


def _counted(count: int, unit: str) -> str:
    return f"{count:,} {unit}" + ("" if count == 1 else "s")


def plain_items(values: Mapping[str, Any]) -> dict[str, Any]:
    """`plain` of every key and value; None is left out."""
    return {plain(k): plain(v) for k, v in values.items() if v is not None}


def plain(value: Any) -> Any:
    """A value that can be shown and written as JSON, whatever it was."""
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, np.ndarray):
        value = value[: _MOST_ITEMS + 1].tolist() if value.ndim else value.item()
    if isinstance(value, list):
        if len(value) > _MOST_ITEMS:
            return f"{len(value)} items"
        return [plain(item) for item in value]
    text = value if isinstance(value, str) else type(value).__name__
    shown = "".join(c if c.isprintable() else "\ufffd" for c in text[: _MOST_CHARACTERS + 1])
    return shown if len(shown) <= _MOST_CHARACTERS else shown[: _MOST_CHARACTERS - 1] + "…"
