"""Perplexity of a run's model, and with a teacher how far it is from that."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lrqat.evaluation.perplexity import LogitsFunction, Perplexity, Windows, compare, perplexity
from lrqat.init.lora_init import round_to_nearest
from lrqat.models.reference import torch_logits
from lrqat.progress import tqdm

Say = Callable[[str], None]


@dataclass(frozen=True)
class Measurement:
    """One measurement.

    Attributes:
        perplexity: of the model.
        kl: with a teacher, mean KL(teacher || model), nats.
        same_top: with a teacher, share of tokens where both put the same token first.
    """

    perplexity: Perplexity
    kl: float | None = None
    same_top: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """The three numbers."""
        perplexity = self.perplexity.perplexity
        return {"perplexity": perplexity, "kl": self.kl, "same_top": self.same_top}


def measure(
    model: Any, windows: Windows, what: str, say: Say, teacher: LogitsFunction | None = None
) -> Measurement:
    """Measure a model, and say what was found.

    Args:
        model: a causal LM; in evaluation mode from here.
        windows: of tokens.
        what: name of what is measured.
        say: receives one line.
        teacher: what it is compared with.
    """

    def progress(items: Any) -> Any:
        return tqdm(items, desc=what, unit="window")

    logits = torch_logits(model.eval())
    if teacher is None:
        found, divergence = Measurement(perplexity(logits, windows, progress)), ""
    else:
        compared = compare(teacher, logits, windows, progress)
        found = Measurement(compared.target, compared.kl, compared.same_top)
        divergence = f", KL from the teacher {compared.kl:.5f}"
    score = found.perplexity
    say(f"perplexity, {what}: {score.perplexity:.4f} +/- {score.standard_error:.4f}{divergence}")
    return found


@dataclass(frozen=True)
class Beginning:
    """Where training begins.

    Attributes:
        rounded: rounded to nearest; None after blocks, which do not begin there.
        start: with A and B as they start; the same measurement where that is round-to-nearest.
    """

    rounded: Measurement | None
    start: Measurement


def measure_beginning(
    model: Any,
    windows: Windows,
    say: Say,
    teacher: LogitsFunction | None = None,
    *,
    after_blocks: bool = False,
) -> Beginning:
    """Measure a prepared model before it is trained as a whole."""
    if after_blocks:
        return Beginning(None, measure(model, windows, "after the blocks", say, teacher))
    with round_to_nearest(model) as elsewhere:
        rounded = measure(model, windows, "round-to-nearest", say, teacher)
    if not elsewhere:
        return Beginning(rounded, rounded)
    return Beginning(rounded, measure(model, windows, "at the start", say, teacher))
