"""The frontier: for every size of the file the least KL, and what llama-quantize's recipes have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lrqat.budget.calibration import Calibration
from lrqat.budget.prices import Allotment, Prices
from lrqat.errors import RecipeError
from lrqat.recipes.llama_quantize import choose_types
from lrqat.recipes.mixtures import MIXTURES
from lrqat.recipes.recipe import UNQUANTIZED
from lrqat.training.recipes import model_shape


@dataclass(frozen=True)
class Frontier:
    """Sizes and KL of one model.

    Attributes:
        points: ours, the smallest file first; where `kl` is None the KL is an estimate.
        recipes: llama-quantize's recipes of types that were priced, rounded by our start scales.
    """

    points: list[Allotment]
    recipes: dict[str, Allotment]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        ours = [{"bytes": p.nbytes, "estimate": p.estimate, "kl": p.kl} for p in self.points]
        theirs = {n: {"bytes": p.nbytes, "estimate": p.estimate} for n, p in self.recipes.items()}
        return {"frontier": ours, "recipes": theirs}


def find_frontier(
    prices: Prices, model: Any, sequences: Tensor, *, count: int = 12, measured: int = 3
) -> Frontier:
    """Allot grids for sizes between the smallest file and the one that loses least.

    Args:
        prices: of the model's weights.
        model: the causal LM in full precision.
        sequences: int64 (sequences, tokens), for the sizes whose KL is measured.
        count: sizes.
        measured: how many of them are measured; the others are put right by these.
    """
    sizes = np.linspace(prices.least_bytes, prices.most_bytes, count)
    points = [prices.allot(int(np.ceil(size))) for size in sizes]
    chosen = set(np.linspace(0, count - 1, measured).round().astype(int)) if measured else set()
    points = [
        prices.measured(model, point, sequences) if i in chosen else point
        for i, point in enumerate(points)
    ]
    calibration = Calibration.of(points)
    recipes = {name: calibration.applied(each) for name, each in _recipes(prices, model)}
    return Frontier([calibration.applied(point) for point in points], recipes)


def _recipes(prices: Prices, model: Any) -> Sequence[tuple[str, Allotment]]:
    try:
        shape = model_shape(model)
        types = {name: choose_types(name, shape) for name in MIXTURES}
    except RecipeError:  # a model that llama-quantize has rules of its own for
        return []
    found = []
    for name, of_weight in types.items():
        grids = {module: kind.lower() for module, kind in of_weight.items()}
        priced = None if UNQUANTIZED in grids.values() else prices.price(grids)
        if priced:
            found.append((name, priced))
    return found
