"""The settings of `lrqat.models.preparation`: how weights are put on their grids."""

import math
from dataclasses import dataclass, replace
from typing import Self

from lrqat.init.starts import LORA_INITS, RANGE_INITS
from lrqat.layers.methods import METHODS
from lrqat.settings import AUTO, Group, above, at_least, one_of, option

PHI = ("fp32", "bf16", "fp16", "fixed", "int")  # the forms in `lrqat.layers.frozen`
_FACTOR_AT_32 = 16  # alpha / r at rank 32, where the paper has 1/32: see lrqat.training.config


def default_alpha(rank: int) -> float:
    """16 r at rank 32, and as the root of the rank elsewhere, so that good rates stay good.

    With Adam each of the r columns of A moves by the rate, in unlike directions.
    Source: Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023.
    """
    return _FACTOR_AT_32 * math.sqrt(32 * rank)


@dataclass(frozen=True, kw_only=True)
class Settings(Group):
    """How weights are put on their grids, and what of them is trained.

    Raises:
        UserError: an unknown name, or a number out of range, on construction.
    """

    title = "weights"

    method: str = option(
        "; ".join(f"{name}: {method.summary}" for name, method in METHODS.items()),
        "lr-qat",
        one_of(METHODS),
    )
    rank: int = option("r: columns of A, rows of B", 32, at_least(1))
    alpha: float | None = option(
        "the update is (alpha/r) A B; default: 16 sqrt(32 r), which is 512 at rank 32",
        None,
        above(0),
    )
    phi: str = option(
        f"form of the frozen weights: {', '.join(PHI)}; bf16 for an embedding, head or "
        "misfit whose grid has no such form",
        "fp32",
        one_of(PHI),
    )
    range_init: str = option(
        f"start scales: {', '.join(RANGE_INITS)}; auto: importance, or l2 with --streamed",
        AUTO,
        one_of((AUTO, *RANGE_INITS)),
    )
    lora_init: str = option(
        f"A and B at the start: {', '.join(LORA_INITS)}; auto: error, or random with --streamed",
        AUTO,
        one_of((AUTO, *LORA_INITS)),
    )

    def with_starts(self, *, importance: bool, directions: bool) -> Self:
        """The same with a name in place of `auto`, which takes the best start that there can be.

        Args:
            importance: whether the importance of the inputs is known.
            directions: whether the directions of the inputs are.
        """
        scales, low_rank = self.range_init, self.lora_init
        return replace(
            self,
            range_init=("importance" if importance else "l2") if scales == AUTO else scales,
            lora_init=("error" if directions else "random") if low_rank == AUTO else low_rank,
        )
