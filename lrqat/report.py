"""What a training run did."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrqat.perplexity import Perplexity


@dataclass(frozen=True)
class TrainReport:
    """What a run did.

    Attributes:
        output: folder of the fused checkpoint.
        before: perplexity of the full-precision model.
        rounded: of the same model rounded to nearest, before training.
        after: of the trained, fake-quant model.
        kl_rounded: with a teacher, mean KL(teacher || model) at round-to-nearest, nats.
        kl_after: the same after training.
        changed: share of the integers that training moved.
        seconds: of training, without loading and measuring.
    """

    output: Path
    before: Perplexity
    rounded: Perplexity
    after: Perplexity
    kl_rounded: float | None
    kl_after: float | None
    changed: float
    seconds: float

    @property
    def made_worse(self) -> bool:
        """Whether what was trained for ended above round-to-nearest: KL, or perplexity."""
        if self.kl_rounded is not None and self.kl_after is not None:
            return self.kl_after > self.kl_rounded
        return self.after.perplexity > self.rounded.perplexity

    def to_json(self) -> dict[str, Any]:
        """The report for machines."""
        return {
            "output": str(self.output),
            "perplexity": {
                "before": self.before.to_json(),
                "round_to_nearest": self.rounded.to_json(),
                "after": self.after.to_json(),
            },
            "kl": {"round_to_nearest": self.kl_rounded, "after": self.kl_after},
            "changed": self.changed,
            "seconds": self.seconds,
            "made_worse": self.made_worse,
        }
