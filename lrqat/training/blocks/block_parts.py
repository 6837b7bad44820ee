"""Which weights and norms of a model are in which block."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from lrqat.layers.norms import trainable_norms
from lrqat.layers.weight import QuantizedWeight
from lrqat.models.preparation import quantized_layers
from lrqat.models.surgery import SurgeryPlan

REST = "rest"  # in the place of a block's name: what is in none, embedding and head


class BlockParts:
    """The parts of a model, by the name of their block.

    Args:
        model: prepared as far as its blocks are done.
        surgery: the plan of all of it.
        names: of the blocks.
    """

    def __init__(self, model: Any, surgery: SurgeryPlan, names: Sequence[str]) -> None:
        self._model, self._surgery = model, surgery
        self._blocks = tuple(f"{name}." for name in names)

    def plan(self, block: str) -> SurgeryPlan:
        """The plan of a block alone."""
        quantized = self._surgery.quantized
        own = {name: t for name, t in quantized.items() if self._is_in(name, block)}
        return replace(self._surgery, quantized=own)

    def weights(self, block: str) -> dict[str, QuantizedWeight]:
        """The weights of a prepared block that are on grids, by name."""
        return {n: weight for n, weight in quantized_layers(self._model) if self._is_in(n, block)}

    def norms(self, block: str) -> dict[str, nn.Parameter]:
        """The parameters of a block's norms that can be trained, by name."""
        if block == REST:
            return {}
        found = trainable_norms(self._model.get_submodule(block))
        return {f"{block}.{name}": norm for name, norm in found.items()}

    def _is_in(self, name: str, block: str) -> bool:
        return not name.startswith(self._blocks) if block == REST else name.startswith(f"{block}.")
