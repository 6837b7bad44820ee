"""How much a runtime may differ from the reference, derived from the model that is proved.

Nothing here is tuned to a model; two things are measured on it, in PyTorch:

- **Summation.** Two correct float32 computations sum in different orders. The reference is run a
  second time with the inputs of every product in another order (`lrqat.runtimes.products`), and
  what that changes is the noise of *this* model: it grows with the logits and the depth, and with
  the outliers of the residual stream. A graph (L1) may differ from the reference by 4 times its
  root mean square and by 8 times its largest value. A wrong graph differs by orders more.
- **Rounding.** What the runtime rounds on purpose is simulated: llama.cpp's activations by the
  types in the file, and those that were rounded in training. A last bit decides now and then to
  which step a value is rounded, and after a few layers the values of two computations have nothing
  in common but their distribution. So the runtime (L2) is not compared with the simulation value by
  value: it and the simulation are two draws, and both are compared with the reference. The mean KL
  of the runtime may exceed 1.5 times that of the simulation by 4 standard errors of the difference
  over tokens, and the mean log-likelihood may shift likewise. If tokens were independent, an exact
  file would fail once in 30,000; the factor is for what the tokens of a window share.

Where nothing is rounded, the simulation is the summation alone, and both bounds are 16 times what
it changes (KL goes with the square of the noise).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrqat.evaluation.perplexity import Comparison, LogitsFunction
from lrqat.runtimes.products import computed_by, in_another_order

_SEEDS = (1, 2)
_RMS_FACTOR, _LARGEST_FACTOR = 4.0, 8.0
_SUMMATION_FACTOR, _ROUNDING_FACTOR = 16.0, 1.5
_STANDARD_ERRORS = 4.0


@dataclass(frozen=True)
class LogitDifference:
    """How much logits differ.

    Attributes:
        rms: root mean square over positions and vocabulary; NaN if any is.
        largest: largest magnitude; NaN if any is.
    """

    rms: float
    largest: float

    @classmethod
    def between(
        cls, one: LogitsFunction, other: LogitsFunction, windows: Sequence[NDArray[np.int64]]
    ) -> "LogitDifference":
        """Over all positions of all `windows`, token ids (n,) each."""
        differences = [np.subtract(one(w), other(w), dtype=np.float64) for w in windows]
        # NaN must not hide: neither square and mean nor numpy's max drop it.
        square = np.mean([np.square(d).mean() for d in differences])
        return cls(math.sqrt(square), float(np.max([np.abs(d).max() for d in differences])))


@dataclass(frozen=True)
class GraphBound:
    """The bound of L1.

    Attributes:
        noise: what another order of summation changes.
    """

    noise: LogitDifference

    def holds(self, found: LogitDifference) -> bool:
        """Whether a difference is explained by float32; NaN never is."""
        return found.rms <= self.rms and found.largest <= self.largest

    @property
    def rms(self) -> float:
        """Of the root mean square."""
        return _RMS_FACTOR * self.noise.rms

    @property
    def largest(self) -> float:
        """Of the largest difference."""
        return _LARGEST_FACTOR * self.noise.largest


def graph_bound(logits: LogitsFunction, windows: Sequence[NDArray[np.int64]]) -> GraphBound:
    """Measure what float32 in another order of summation does to a PyTorch model.

    Args:
        logits: of the model, in the state in which the graph is compared with it.
        windows: token ids (n,) each.
    """
    found = [LogitDifference.between(logits, reordered(logits, s), windows) for s in _SEEDS]
    rms, largest = max(d.rms for d in found), max(d.largest for d in found)
    return GraphBound(LogitDifference(rms, largest))


def reordered(logits: LogitsFunction, seed: int = _SEEDS[0]) -> LogitsFunction:
    """The same model with its products summed in another order."""

    def other(tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        with computed_by(in_another_order(seed)):
            return logits(tokens)

    return other


@dataclass(frozen=True)
class RuntimeBound:
    """The bounds of L2.

    Attributes:
        simulated: the reference against the simulation of the runtime.
        rounds: whether anything is rounded, or only summed in another order.
    """

    simulated: Comparison
    rounds: bool

    def holds(self, found: Comparison) -> bool:
        """Whether the runtime differs from the reference by no more than the simulation says."""
        return found.kl <= self.kl(found) and abs(_shift(found)) <= self.shift(found)

    def kl(self, found: Comparison) -> float:
        """Bound of the mean KL of `found`, on the same tokens, in nats."""
        difference = found.divergences - self.simulated.divergences
        allowed = self._factor * self.simulated.kl + _STANDARD_ERRORS * _standard_error(difference)
        return min(allowed, self._most)

    def shift(self, found: Comparison) -> float:
        """Bound of the change of the mean log-likelihood per token, in nats."""
        change = found.target.nll - found.reference.nll
        explained = self._factor * abs(_shift(self.simulated))
        return explained + _STANDARD_ERRORS * _standard_error(change)

    @property
    def _factor(self) -> float:
        return _ROUNDING_FACTOR if self.rounds else _SUMMATION_FACTOR

    @property
    def _most(self) -> float:
        """However few tokens there are, and however they scatter, never more than this."""
        return 2 * self._factor * self.simulated.kl

    def to_json(self, found: Comparison) -> dict[str, Any]:
        """The bounds of a comparison, for machines."""
        return {
            "simulated_kl": self.simulated.kl,
            "kl_bound": self.kl(found),
            "shift": _shift(found),
            "shift_bound": self.shift(found),
        }


def _shift(comparison: Comparison) -> float:
    return float((comparison.target.nll - comparison.reference.nll).mean())


def _standard_error(values: NDArray[np.float64]) -> float:
    return math.sqrt(float(values.var()) / max(1, len(values) - 1))
