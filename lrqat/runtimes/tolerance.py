"""What may differ between a runtime and the reference; `lrqat.runtimes.parity` says why."""

from dataclasses import dataclass

from lrqat.evaluation.perplexity import Comparison


@dataclass(frozen=True)
class Tolerance:
    """Bounds of L2; None where a runtime needs no such allowance.

    Attributes:
        relative: |relative difference of perplexity|.
        standard_errors: of the paired difference of log-likelihoods.
        kl: mean KL, nats.
    """

    relative: float
    standard_errors: float | None
    kl: float

    def holds(self, comparison: Comparison) -> bool:
        """Whether a comparison keeps within all bounds."""
        return (
            abs(comparison.relative_difference) <= self.relative
            and comparison.kl <= self.kl
            and (self.standard_errors is None or comparison.standard_errors <= self.standard_errors)
        )
