"""What a training run did."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from lrqat.evaluation.perplexity import Perplexity
from lrqat.layers.methods import METHODS
from lrqat.training.blocks.stage import BlockReport
from lrqat.training.callbacks import shares_changed
from lrqat.training.config import TrainConfig
from lrqat.training.measuring import Measurement
from lrqat.training.stages import Outcome


@dataclass(frozen=True)
class TrainReport:
    """What a run did.

    Attributes:
        output: folder of the fused checkpoint.
        method: name of the method.
        before: perplexity of the full-precision model; None where it was never whole.
        rounded: of the same model rounded to nearest, before training; None where the method
            rounds at the end, and after blocks, which do not begin there.
        start: where training as a whole began, with A and B and after the blocks.
        after: of the fake-quant model that is written.
        kl_rounded: with a teacher, mean KL(teacher || model) at round-to-nearest, nats.
        kl_start: the same at `start`.
        kl_after: the same after training.
        same_top_after: with a teacher, share of tokens where both put the same token first.
        changed: share of the integers that training as a whole changed.
        seconds: of that, without loading and measuring.
        skipped_steps: steps that were skipped because something was not finite.
        blocks: what became of each block, where they were fitted one by one.
        block_seconds: that it took, in this process.
        history: what was logged of the steps, see `lrqat.training.callbacks.history_of`.
        weights: the share of the integers that the steps changed, by weight.
        sensitivity: under a budget, KL in nats a token that each weight adds on its grid, estimated
            before training; else empty.
    """

    output: Path
    method: str
    before: Perplexity | None
    rounded: Perplexity | None
    start: Perplexity | None
    after: Perplexity
    kl_rounded: float | None
    kl_start: float | None
    kl_after: float | None
    changed: float
    seconds: float
    skipped_steps: int = 0
    same_top_after: float | None = None
    blocks: tuple[BlockReport, ...] = ()
    block_seconds: float = 0.0
    history: tuple[dict[str, float], ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    sensitivity: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        before: Measurement | None,
        done: Outcome,
        changed: float,
        sensitivity: dict[str, float],
    ) -> Self:
        """The report of what was measured, see the attributes."""
        rounded = done.beginning.rounded if done.beginning else None
        start = done.beginning.start if done.beginning else None
        return cls(
            output=Path(config.output),
            method=config.method,
            before=before.perplexity if before else None,
            rounded=rounded.perplexity if rounded else None,
            start=start.perplexity if start else None,
            after=done.after.perplexity,
            kl_rounded=rounded.kl if rounded else None,
            kl_start=start.kl if start else None,
            kl_after=done.after.kl,
            blocks=tuple(done.blocks),
            block_seconds=done.block_seconds,
            same_top_after=done.after.same_top,
            changed=changed,
            seconds=done.fitted.seconds,
            skipped_steps=done.fitted.skipped_steps,
            history=tuple(done.fitted.history),
            weights=shares_changed(done.model),
            sensitivity=sensitivity,
        )

    @property
    def changed_in_blocks(self) -> float:
        """Mean share of a block's integers that are not those of round-to-nearest."""
        return sum(block.changed for block in self.blocks) / max(1, len(self.blocks))

    @property
    def made_worse(self) -> bool:
        """Whether what was trained for ended above round-to-nearest: KL, or perplexity."""
        if not METHODS[self.method].trains:
            return False
        if self.kl_rounded is not None and self.kl_after is not None:
            return self.kl_after > self.kl_rounded
        return self.rounded is not None and self.after.perplexity > self.rounded.perplexity

    def to_json(self) -> dict[str, Any]:
        """The report for machines."""
        return {
            "output": str(self.output),
            "method": self.method,
            "perplexity": {
                "before": self.before and self.before.to_json(),
                "round_to_nearest": self.rounded and self.rounded.to_json(),
                "start": self.start and self.start.to_json(),
                "after": self.after.to_json(),
            },
            "kl": {
                "round_to_nearest": self.kl_rounded,
                "start": self.kl_start,
                "after": self.kl_after,
            },
            "blocks": [asdict(block) for block in self.blocks],
            "block_seconds": self.block_seconds,
            "same_top_after": self.same_top_after,
            "changed": self.changed,
            "seconds": self.seconds,
            "skipped_steps": self.skipped_steps,
            "made_worse": self.made_worse,
            "history": list(self.history),
            "weights": self.weights,
            "sensitivity": self.sensitivity,
        }
