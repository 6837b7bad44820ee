"""How long a run will take, told before its first step.

What it consists of is counted from shapes: products of weights with tokens, weights that are built
from A, B and the scales, values between them, logits. What each takes on this machine is measured
(`lrqat.training.pace`). The sum says no more than whether to wait or to come back tomorrow.
"""

import math
from dataclasses import dataclass
from typing import Any

from lrqat.architectures import is_output_head
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.layers.methods import METHODS
from lrqat.models.matrices import find_matrices
from lrqat.models.surgery import SurgeryPlan
from lrqat.training.config import TrainConfig
from lrqat.training.estimate import values_of_a_layer
from lrqat.training.pace import Pace
from lrqat.training.settings import NONE, SELF
from lrqat.training.stage_settings import BLOCK_BATCH

_LEARNING = 3.0  # forward and backward, in forward passes
_WALKS = 2  # over the text of the blocks: what they should do, and what enters the next


@dataclass(frozen=True)
class Work:
    """What there is to compute in a model, from its shapes.

    Attributes:
        products: weights that a token is multiplied with, of the blocks.
        built: those of them that are put on a grid whenever they are used, of all experts.
        values: that a token has in all blocks, between the products.
        channels: of attention, of all blocks.
        head: weights of the output head.
        vocabulary: logits of a token.
    """

    products: int
    built: int
    values: int
    channels: int
    head: int
    vocabulary: int

    @classmethod
    def of(cls, model: Any, surgery: SurgeryPlan) -> "Work":
        """Count.

        Args:
            model: on any device, also meta.
            surgery: which of its weights go on which grid.
        """
        text = model.config.get_text_config()
        experts = getattr(text, "num_experts_per_tok", None)
        products = 0
        for name, matrix in find_matrices(model):
            used = min(experts or matrix.count, matrix.count)
            if _in_a_block(name, matrix.kind):
                products += used * math.prod(matrix.shape)
        built = sum(t.weights for n, t in surgery.quantized.items() if _in_a_block(n, t.kind))
        return cls(
            products=products,
            built=built,
            values=text.num_hidden_layers * values_of_a_layer(text),
            channels=text.num_hidden_layers * text.hidden_size,
            head=text.vocab_size * text.hidden_size,
            vocabulary=text.vocab_size,
        )


@dataclass(frozen=True)
class Duration:
    """Seconds of each part of a run, by its name."""

    parts: dict[str, float]

    @classmethod
    def of(
        cls, config: TrainConfig, work: Work, pace: Pace, *, windows: int, done: int | None = None
    ) -> "Duration":
        """Estimate.

        Args:
            config: the settings, resolved.
            work: what there is to compute.
            pace: how fast it is computed here.
            windows: of text that is measured, several times.
            done: steps of the model that were made before, of a run that is continued from there.
        """
        run = _Run(config, work, pace)
        parts = {"measuring": run.measuring(windows)}
        if config.by_blocks and done is None:
            parts["blocks"] = run.blocks()
        if METHODS[config.method].trains and config.as_a_whole:
            parts["steps"] = run.steps(config.steps - (done or 0))
        return cls(parts)

    def line(self) -> str:
        """For people: "about 14 minutes to come (measuring 1, blocks 5, steps 8)"."""
        parts = ", ".join(f"{name} {_said(seconds)}" for name, seconds in self.parts.items())
        return f"about {_said(sum(self.parts.values()))} to come ({parts})"


class _Run:
    """The seconds of one run's parts."""

    def __init__(self, config: TrainConfig, work: Work, pace: Pace) -> None:
        self._config, self._work, self._pace = config, work, pace
        self._teaches = config.teacher != NONE and config.cross_entropy_weight < 1
        self._teacher_computes = self._teaches and not config.teacher_cache

    def measuring(self, windows: int) -> float:
        """Full precision, where steps begin and where they end; each beside the teacher."""
        config, work, pace = self._config, self._work, self._pace
        length = config.context
        products = pace.exact_product * (work.products + work.head)
        alone = length * (products + self._between(length) + work.vocabulary * pace.logit)
        built = pace.original * (work.built + work.head)
        compared = 2 + (not config.by_blocks)  # rounded to nearest, the start, and the end
        passes = 1 + compared * (2 if self._teaches else 1)
        return windows * (passes * alone + compared * built)

    def blocks(self) -> float:
        """Every block's steps, the last one's logits, and the walks of the text through them."""
        config, work, pace = self._config, self._work, self._pace
        forward = pace.product * work.products + self._between(config.sequence_length)
        # Of the logits the original's are computed, and the others forwards and backwards.
        logits = _LEARNING * pace.product * work.head + work.vocabulary * pace.logit
        a_step = BLOCK_BATCH * (_LEARNING * forward + logits) + pace.thawed * work.built
        text = config.block_text
        walked = _WALKS * text + min(text, config.importance_tokens)
        return config.block_steps * a_step + walked * forward

    def steps(self, count: int) -> float:
        """The steps of the model as a whole."""
        config, work, pace = self._config, self._work, self._pace
        tokens = config.batch_size * config.sequence_length
        passes = _LEARNING + self._teacher_computes + config.gradient_checkpointing
        forward = pace.product * work.products + self._between(config.sequence_length)
        logits = work.vocabulary * pace.logit
        own = self._teacher_computes and config.teacher == SELF
        built = pace.building + pace.original * (own + config.gradient_checkpointing)
        batch = tokens * (passes * (forward + pace.product * work.head) + logits)
        head = pace.head + pace.original_head * own
        return (
            count * config.gradient_accumulation * (batch + built * work.built + head * work.head)
        )

    def _between(self, length: int) -> float:
        """What a token needs in the blocks besides products with weights, in a forward pass."""
        work, pace = self._work, self._pace
        both_ways = work.channels * length * pace.attention + work.values * pace.value
        return both_ways / _LEARNING


def _in_a_block(name: str, kind: WeightKind) -> bool:
    return kind != WeightKind.EMBEDDING and not is_output_head(name)


def _said(seconds: float) -> str:
    """In the unit that suits, to two digits: nobody knows more."""
    for unit, size in (("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return "less than 1 s"
