"""The activation grids and the ways to find static ranges: what there is to choose from.

What they compute is in `lrqat.activations.grids`, `runtime_rounding` and `ranges`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from lrqat.deferred import Deferred
from lrqat.errors import GridError, UserError, did_you_mean

TOKEN, TENSOR, BLOCK = "token", "tensor", "block"


@dataclass(frozen=True)
class ActivationGrid:
    """One row of the table.

    Attributes:
        name: what `--activations` takes.
        bits: width of the integers.
        per: what shares a range: "token" (a row of the last dimension, measured as it passes),
            "tensor" (one fixed range, measured before training) or "block" (`block` consecutive
            values of a row, as the kernels of a runtime do; symmetric).
        block: values that share a scale; None where `per` is not "block".
        rounding: key of `lrqat.activations.runtime_rounding.BLOCK_ROUNDINGS` where `per` is
            "block".
        summary: one line for `--help` and the documentation.
    """

    name: str
    bits: int
    per: str
    block: int | None
    rounding: str | None
    summary: str

    @property
    def q_max(self) -> int:
        """Largest integer of an asymmetric grid; the smallest is 0."""
        return int(2**self.bits - 1)

    @property
    def static(self) -> bool:
        """Whether ranges must be measured beforehand (`lrqat.activations.ranges`)."""
        return self.per == TENSOR

    def refuses(self, in_features: int) -> str | None:
        """Why rows of `in_features` values do not fit this grid, or None when they do."""
        if self.block is None or in_features % self.block == 0:
            return None
        return (
            f"{in_features} values are not a multiple of the {self.block} that share a scale in "
            f"{self.name}"
        )


class Setting(NamedTuple):
    """A W-A-KV setting: weight bits, name of an activation grid, and KV bits; None: not rounded."""

    weight_bits: int
    activations: str | None
    kv_bits: int | None


def _integer_rows() -> list[ActivationGrid]:
    forms = {TOKEN: "a range a token, as it passes", TENSOR: "one range, measured beforehand"}
    return [
        ActivationGrid(f"int{bits}-{per}", bits, per, None, None, f"{bits} bits, {form}")
        for per, form in forms.items()
        for bits in (8, 4, 16)
    ]


def _ort_rows() -> list[ActivationGrid]:
    """One for each block size that MatMulNBits takes."""
    text = "8 bits, as ONNX Runtime's accuracy level 4 under weights in groups of"
    return [
        ActivationGrid(f"ort-level4-g{size}", 8, BLOCK, size, "ort-level4", f"{text} {size}")
        for size in (16, 32, 64, 128, 256)
    ]


_ROWS = (
    *_integer_rows(),
    ActivationGrid("q8_0", 8, BLOCK, 32, "q8_0", "8 bits, as llama.cpp under Q4_0 and Q8_0"),
    ActivationGrid("q8_k", 8, BLOCK, 256, "q8_k", "8 bits, as llama.cpp under K-quants"),
    *_ort_rows(),
)

ACTIVATION_GRIDS: dict[str, ActivationGrid] = {grid.name: grid for grid in _ROWS}


def find_activation_grid(name: str, weight_group: int | None = None) -> ActivationGrid:
    """The activation grid called `name` (case does not matter).

    Args:
        name: of the table; "ort-level4" stands for the row of `weight_group`.
        weight_group: block size of the weights, for "ort-level4" alone (None: 32).

    Raises:
        GridError: an unknown name, naming the nearest ones.
    """
    key = name.lower()
    if key == "ort-level4":
        key = f"{key}-g{weight_group or 32}"
    grid = ACTIVATION_GRIDS.get(key)
    if grid:
        return grid
    hint = did_you_mean(key, ACTIVATION_GRIDS)
    raise GridError(
        f"unknown activation grid {key!r}: {hint}known are {', '.join(ACTIVATION_GRIDS)}"
    )


def parse_setting(text: str) -> Setting:
    """Read a W-A-KV setting such as "4-8-8"; 16 means: not rounded.

    Activations are dynamic per token, keys and values per token and head, as in the paper's W-A-KV
    experiments.

    Raises:
        UserError: not of that form, or a width that does not exist.
    """
    found = re.fullmatch(r"([2-8])-(4|8|16)-(4|8|16)", text.strip())
    if not found:
        raise UserError(
            f"--setting {text!r} is not weights-activations-cache in bits; weights are 2 to 8, the "
            "others 4, 8 or 16 (not rounded), as in 4-8-8, 4-8-4, 4-4-4 or 4-16-16"
        )
    weights, activations, cache = map(int, found.groups())
    return Setting(
        weights,
        None if activations == 16 else f"int{activations}-token",
        None if cache == 16 else cache,
    )


# (inputs that were seen, grid) -> the ends of the range.
RANGE_METHODS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "minmax": Deferred("lrqat.activations.ranges:min_max"),
    "percentile": Deferred("lrqat.activations.ranges:percentile"),
    "mse": Deferred("lrqat.activations.ranges:least_squares"),
}
