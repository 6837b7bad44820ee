"""The methods: LR-QAT and what it is compared with, by one flag.

lr-qat          A, B and the scales (and minima) are trained, inside the rounding
scales          the scales (and minima) alone (PEQA, Kim et al., 2023)
full            every weight and the scales (LSQ, Esser et al., 2020)
lora-then-rtn   plain LoRA beside the full-precision weight, merged and rounded at the end
rtn             nothing: round-to-nearest with the start scales
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lrqat.deferred import Deferred

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        summary: one line for `--help` and the documentation.
        low_rank: whether A and B exist.
        trains: names of the trained parameters, among those of a layer.
        rounds_inside: whether training sees the rounding; else it comes at the end.
        learning_rate: peak rate of A and B where they do not move on a grid; None: that of their
            start.
    """

    summary: str
    low_rank: bool
    trains: frozenset[str]
    _layer: Deferred
    rounds_inside: bool = True
    learning_rate: float | None = None

    @property
    def layer(self) -> "type[nn.Module]":
        """Class of the layers that it trains."""
        found: type[nn.Module] = self._layer.found()
        return found

    @property
    def outcome(self) -> str:
        """What its model is in the end, for people."""
        if not self.trains:
            return "rounded"
        return "trained" if self.rounds_inside else "trained and then rounded"


_RANGES = frozenset({"scale", "minimum"})
_LOW_RANK = frozenset({"lora_a", "lora_b"})

_LINEAR = Deferred("lrqat.layers.linear:LRQATLinear")
_FULL, _LORA = Deferred("lrqat.layers.full:FullQATLinear"), Deferred("lrqat.layers.lora:LoRALinear")

METHODS: dict[str, Method] = {
    "lr-qat": Method("A, B and the scales, in the rounding", True, _LOW_RANK | _RANGES, _LINEAR),
    "scales": Method("the scales alone (PEQA)", False, _RANGES, _LINEAR),
    "full": Method("every weight and the scales (LSQ)", False, _RANGES | {"weight"}, _FULL),
    "lora-then-rtn": Method(
        "plain LoRA, merged and rounded", True, _LOW_RANK, _LORA, False, learning_rate=1e-3
    ),
    "rtn": Method("nothing: round-to-nearest", False, frozenset(), _LINEAR),
}
