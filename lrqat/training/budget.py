"""The grids of a run under a budget: `--target-size` and `--target-bits`, `lrqat plan`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrqat.budget.file_bytes import other_bytes
from lrqat.budget.prices import SEQUENCE_LENGTH, SEQUENCES, Allotment, Prices, find_prices
from lrqat.byte_sizes import parse_size
from lrqat.errors import DataError
from lrqat.grids.backends import BACKENDS
from lrqat.grids.grid import GRIDS, Grid
from lrqat.models.preparation import check_settings
from lrqat.models.surgery import SurgeryPlan
from lrqat.progress import tqdm
from lrqat.recipes.compact import compact
from lrqat.recipes.recipe import Recipe
from lrqat.training.config import TrainConfig
from lrqat.training.estimate import trainable_parameters
from lrqat.training.plan import TrainingPlan
from lrqat.training.settings import GridSettings

# What weights may be on unless a back-end is named: llama.cpp's types but for ternary ones, which
# want to be trained. Of two of a size the one that loses less wins, weight by weight.
_GRIDS = (
    "q2_0", "q2_k", "q2_k-sym", "q3_k", "iq4_xs", "iq4_nl", "q4_0", "q4_k", "q4_1", "q5_0", "q5_k",
    "q5_1", "q6_k", "q8_0",
)  # fmt: skip
# Not every graph of llama.cpp multiplies with its tensor scale: the user names it, or nobody.
_BY_ARCHITECTURE = ("nvfp4",)
Say = Callable[[str], None]
# Bytes of the file that a run with these grids is exported to; None where that cannot be told. Who
# knows the exporters, as the program does, gives it; without it `other_bytes` makes an estimate.
FileBytes = Callable[[TrainConfig, SurgeryPlan], int | None]


@dataclass(frozen=True)
class Budgeted:
    """What a budget chose.

    Attributes:
        recipe: a grid for every weight.
        sensitivity: KL in nats a token that each weight adds on its grid, estimated.
    """

    recipe: Recipe
    sensitivity: dict[str, float]


def no_file_bytes(config: TrainConfig, surgery: SurgeryPlan) -> int | None:
    """The `FileBytes` of those who know no exporter."""
    return None


def candidates(settings: GridSettings) -> list[Grid]:
    """The grids that a budget chooses from."""
    if settings.for_ is not None:
        grids = BACKENDS[settings.for_].grids()
        return [grid for grid in grids if grid.name not in _BY_ARCHITECTURE]
    return [GRIDS[name] for name in _GRIDS]


def sequences_of(tokens: np.ndarray) -> Tensor:
    """The start of a text, int64 (sequences, tokens), to measure a budget on.

    Args:
        tokens: of any shape, in the order of the text.

    Raises:
        DataError: there is not one sequence.
    """
    flat = torch.from_numpy(np.asarray(tokens).reshape(-1).astype("int64"))
    count = min(SEQUENCES, len(flat) // SEQUENCE_LENGTH)
    if not count:
        raise DataError(
            f"the text has {len(flat)} tokens and a budget is measured on {SEQUENCE_LENGTH} at "
            "least; give more text"
        )
    return flat[: count * SEQUENCE_LENGTH].view(count, SEQUENCE_LENGTH)


def price_model(
    model: Any,
    tokenizer: Any,
    surgery: SurgeryPlan,
    config: TrainConfig,
    sequences: Tensor,
    file_bytes: FileBytes = no_file_bytes,
) -> Prices:
    """What every weight of the plan costs on every grid that the settings allow."""
    grids = candidates(config)
    exact = file_bytes(config, surgery)
    others = other_bytes(model, surgery, tokenizer)
    if exact is not None:
        names = ",".join(grid.name for grid in grids)  # the metadata lists those that there are
        others = exact - sum(t.nbytes for t in surgery.quantized.values()) + len(names)
    return find_prices(
        model,
        surgery,
        grids,
        sequences,
        other_bytes=others,
        progress=lambda it: tqdm(it, desc="sensitivity", unit="sequence"),
    )


def target_bytes(settings: GridSettings, model: Any) -> int:
    """Bytes of the file that `--target-size` or `--target-bits` asks for."""
    if settings.target_size is not None:
        return parse_size(settings.target_size, "--target-size")
    assert settings.target_bits is not None
    return int(settings.target_bits * sum(p.numel() for p in model.parameters()) / 8)


def choose_grids(
    model: Any,
    tokenizer: Any,
    surgery: SurgeryPlan,
    config: TrainConfig,
    tokens: np.ndarray,
    say: Say,
    file_bytes: FileBytes = no_file_bytes,
) -> Budgeted:
    """The recipe with the least KL within the budget, measured on a text.

    Args:
        model: in full precision, left as it was.
        tokenizer: its own.
        surgery: which weights.
        config: the settings, with the budget and the back-end.
        tokens: of the text, in order.
        say: receives what was chosen, one line each.
        file_bytes: gives the size of a file.

    Raises:
        UserError: the budget is too small, or says no size.
    """
    wanted = target_bytes(config, model)
    say("choosing a grid for every weight")
    sequences = sequences_of(tokens)
    prices = price_model(model, tokenizer, surgery, config, sequences, file_bytes)
    chosen = prices.measured(model, prices.allot(wanted), sequences)
    say(f"{chosen.nbytes / 1e6:.1f} MB as GGUF, {describe_kl(chosen)}")
    recipe = recipe_of_allotment(chosen, Path(getattr(model, "name_or_path", "")).name)
    return Budgeted(recipe, dict(chosen.losses))


def with_budget(plan: TrainingPlan, recipe: Recipe, config: TrainConfig) -> TrainingPlan:
    """The plan of a run with the grids that its budget got. Raises as `check_settings` does."""
    surgery = with_recipe(plan.surgery, recipe)
    check_settings(surgery, config)
    trainable = trainable_parameters(surgery, config, trains_scales=config.trains_scales)
    return replace(plan, surgery=surgery, trainable=trainable)


def describe_kl(allotment: Allotment) -> str:
    """What it loses, for people."""
    kl = f"KL {allotment.estimate:.4g} (estimated"
    return kl + (
        ")" if allotment.kl is None else f"), {allotment.kl:.4g} (measured, rounded to nearest)"
    )


def recipe_of_allotment(allotment: Allotment, model: str) -> Recipe:
    """Its grids as a recipe."""
    about = f"{allotment.nbytes / 1e6:.1f} MB of {model}, allotted by measured sensitivity"
    return compact(allotment.grids, f"{allotment.nbytes / 1e6:.0f}MB", about)


def with_recipe(surgery: SurgeryPlan, recipe: Recipe) -> SurgeryPlan:
    """The same weights on the grids of a recipe."""
    grids = recipe.grids_of(surgery.quantized)
    quantized = {
        name: replace(target, grid=GRIDS[grids[name]], asked=None) if name in grids else target
        for name, target in surgery.quantized.items()
    }
    return replace(surgery, quantized=quantized)
