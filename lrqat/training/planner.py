"""What `lrqat plan` does: a model and a text in, grids for a size or the whole frontier out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lrqat.budget.prices import Allotment, Prices
from lrqat.models.surgery import SurgeryPlan
from lrqat.recipes.recipe import Recipe
from lrqat.training.base_model import open_base
from lrqat.training.budget import (
    FileBytes,
    Say,
    no_file_bytes,
    price_model,
    recipe_of_allotment,
    sequences_of,
    target_bytes,
    with_recipe,
)
from lrqat.training.config import TrainConfig
from lrqat.training.data.corpus import check_texts, read_corpus
from lrqat.training.frontier import Frontier, find_frontier
from lrqat.training.loading import load_tokenizer, load_whole
from lrqat.training.plan import plan_grids


@dataclass(frozen=True)
class Planner:
    """A model whose weights are priced.

    Attributes:
        model: in full precision.
        settings: the budget among them.
        surgery: which weights.
        prices: what each costs.
        sequences: the text that they were measured on.
    """

    model: Any
    settings: TrainConfig
    surgery: SurgeryPlan
    prices: Prices
    sequences: Tensor

    @classmethod
    def open(
        cls,
        model: str,
        data: str | tuple[str, ...],
        *,
        say: Say,
        file_bytes: FileBytes = no_file_bytes,
        **settings: Any,
    ) -> "Planner":
        """Load a model and price its weights.

        Args:
            model: folder, GGUF file or hub id.
            data: as `--data` of train.
            say: receives progress, one line each.
            file_bytes: gives the size of a file.
            settings: of `TrainConfig`: `target_size`, `target_bits`, `for_`, `tokenizer` ...

        Raises:
            UserError: anything about the model, the text or the settings.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        config = TrainConfig(model=model, data=data, output="", **given).resolved()
        stored = open_base(config)
        for note in stored.notes:
            say(note)
        surgery = plan_grids(stored.skeleton, config)
        check_texts(config)
        tokenizer = load_tokenizer(config)
        loaded = load_whole(config)
        sequences = sequences_of(read_corpus(config, tokenizer, loaded, say).blocks.tokens)
        prices = price_model(loaded, tokenizer, surgery, config, sequences, file_bytes)
        return cls(loaded, config, surgery, prices, sequences)

    def choose(self) -> Allotment:
        """The grids for the size that the settings name, with their measured KL."""
        wanted = self.prices.allot(target_bytes(self.settings, self.model))
        return self.prices.measured(self.model, wanted, self.sequences)

    def frontier(self) -> Frontier:
        """The least KL for every size."""
        return find_frontier(self.prices, self.model, self.sequences)

    def recipe(self, allotment: Allotment) -> Recipe:
        """The grids as a recipe."""
        return recipe_of_allotment(allotment, Path(self.settings.model).name)

    def surgery_of(self, allotment: Allotment) -> SurgeryPlan:
        """The plan with these grids."""
        return with_recipe(self.surgery, self.recipe(allotment))
