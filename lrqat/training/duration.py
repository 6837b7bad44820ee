"""How long the stages of a run will take, told before their first step.

The model was just measured on windows of text, so what a token costs forward is known on this
machine. A step costs some times that: the backward pass twice, a teacher once, and building weights
from A, B and the scales, which does not depend on the tokens. The factors are from shapes, and the
sum says no more than whether to wait or to come back tomorrow.
"""

from dataclasses import dataclass

from lrqat.layers.methods import METHODS
from lrqat.training.config import TrainConfig
from lrqat.training.settings import BLOCK_BATCH, NONE

_LEARNING = 3.0  # forward and backward, in forward passes
_WALKS = 3  # over the text of the blocks: what they should do, what enters, what is measured
_BUILDING_TOKENS = 300  # that a step's weights are worth in time, forward and backward


@dataclass(frozen=True)
class Duration:
    """Seconds of each stage, by its name."""

    stages: dict[str, float]

    @classmethod
    def of(cls, config: TrainConfig, seconds_per_token: float) -> "Duration":
        """Estimate.

        Args:
            config: the settings, resolved.
            seconds_per_token: of a forward pass of the original model on this machine.
        """
        stages = {}
        if config.by_blocks:
            steps = config.block_steps * _step(BLOCK_BATCH, _LEARNING)
            stages["blocks"] = steps + _WALKS * config.block_text
        if METHODS[config.method].trains and config.as_a_whole:
            teacher = 0 if config.teacher == NONE or config.teacher_cache else 1
            again = 1 if config.gradient_checkpointing else 0
            passes = _LEARNING + teacher + again
            batches = config.steps * config.gradient_accumulation
            tokens = config.batch_size * config.sequence_length
            stages["steps"] = batches * _step(tokens, passes)
        return cls({name: tokens * seconds_per_token for name, tokens in stages.items()})

    def line(self) -> str:
        """For people: "about 14 minutes to come (blocks 6, steps 8)"."""
        parts = ", ".join(f"{name} {_said(seconds)}" for name, seconds in self.stages.items())
        return f"about {_said(sum(self.stages.values()))} of training to come ({parts})"


def _step(tokens: int, passes: float) -> float:
    """A step in tokens of a forward pass."""
    return passes * (tokens + _BUILDING_TOKENS)


def _said(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
