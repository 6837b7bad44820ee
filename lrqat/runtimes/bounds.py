"""How much a runtime may differ from the reference, derived from the model that is proved.

Nothing here is tuned to a model; two things are measured on it, in PyTorch:

- **Summation.** Two correct float32 computations sum in different orders. The reference is run
  again with the inputs of every product in another order (`lrqat.runtimes.products`), and what that
  changes is the noise of *this* model: it grows with the logits and the depth, and with the
  outliers of the residual stream. A graph (L1) may differ from the reference by 4 times the root
  mean square of that noise, and by 8 times its largest value. A wrong graph differs by orders more.
- **Rounding.** What the runtime rounds on purpose is simulated: llama.cpp's activations by the
  types in the file, and those that were fake-quantized in training. A last bit decides now and then
  to which step a value is rounded, and after a few layers the values of two computations have
  nothing in common but their distribution. So the runtime (L2) is not compared with the simulation
  value by value: the two are draws of the same noise, and both are compared with the reference. The
  mean KL of the runtime may exceed 1.5 times that of the simulation by 4 standard errors of the
  difference over tokens (and never 3 times), and the mean log-likelihood may shift likewise. If
  tokens were independent, an exact file would fail once in 30,000; the factor is for what the
  tokens of a window share.

Where nothing is rounded, the simulation is the summation alone, and the factor is 16: KL goes with
the square of the noise.
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
_STANDARD_ERRORS, _MOST = 4.0, 2.0
# Of logits around 1 in float32; a model of one layer may happen to sum the same in either order.
_LEAST_NOISE = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class LogitDifference:
    """How much two computations of the same logits differ.

    Attributes:
        rms: root mean square over positions and vocabulary; NaN if any difference is.
        largest: largest magnitude; NaN if any difference is.
    """

    rms: float
    largest: float

    @classmethod
    def over(cls, differences: Sequence[tuple[float, float]]) -> "LogitDifference":
        """Of several windows, given the mean square and the largest magnitude of each."""
        squares, largest = np.array(differences).T
        return cls(math.sqrt(squares.mean()), float(largest.max()))  # numpy's max keeps a NaN


@dataclass(frozen=True)
class GraphCheck:
    """L1: the logits of a graph in float32 against the reference's.

    Attributes:
        found: how much they differ.
        noise: how much the reference differs from itself in another order of summation.
    """

    found: LogitDifference
    noise: LogitDifference

    @property
    def bound(self) -> LogitDifference:
        """The most that summation explains."""
        return LogitDifference(_RMS_FACTOR * self.noise.rms, _LARGEST_FACTOR * self.noise.largest)

    @property
    def holds(self) -> bool:
        """Whether summation explains the difference; NaN it never does."""
        return self.found.rms <= self.bound.rms and self.found.largest <= self.bound.largest

    @property
    def reason(self) -> str:
        """What a failure means."""
        times = max(self.found.rms / self.noise.rms, self.found.largest / self.noise.largest)
        return (
            f"logits differ by up to {self.found.largest:.1e} (root mean square "
            f"{self.found.rms:.1e}), {times:,.0f} times what another order of summation changes: "
            "the file's graph is not the model's"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "max_logit_difference": self.found.largest,
            "rms_logit_difference": self.found.rms,
            "summation_noise": vars(self.noise),
            "bound": vars(self.bound),
        }


def check_graph(
    reference: LogitsFunction, graph: LogitsFunction, windows: Sequence[NDArray[np.int64]]
) -> GraphCheck:
    """Compare logits, and measure the noise that bounds their difference.

    Args:
        reference: of a PyTorch model, in the state in which the graph should compute the same.
        graph: of the file.
        windows: token ids (n,) each.
    """
    others = [graph, *(reordered(reference, seed) for seed in _SEEDS)]
    differences: list[list[tuple[float, float]]] = [[] for _ in others]
    for window in windows:
        expected = reference(window)
        for found, other in zip(differences, others, strict=True):
            difference = np.subtract(other(window), expected, dtype=np.float64)
            found.append((float(np.square(difference).mean()), float(np.abs(difference).max())))
    of_graph, *noise = (LogitDifference.over(each) for each in differences)
    return GraphCheck(
        of_graph,
        LogitDifference(
            max(_LEAST_NOISE, *(n.rms for n in noise)),
            max(_LEAST_NOISE, *(n.largest for n in noise)),
        ),
    )


def reordered(logits: LogitsFunction, seed: int = _SEEDS[0]) -> LogitsFunction:
    """The same PyTorch model with its products summed in another order."""

    def other(tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        with computed_by(in_another_order(seed)):
            return logits(tokens)

    return other


@dataclass(frozen=True)
class RuntimeCheck:
    """L2: the runtime against the reference, and what a simulation of it says to expect.

    Attributes:
        found: the runtime against the reference.
        simulated: the simulation against the reference, on the same tokens.
        rounds: whether anything is rounded, or only summed in another order.
    """

    found: Comparison
    simulated: Comparison
    rounds: bool

    @property
    def kl_bound(self) -> float:
        """The most that the mean KL may be, nats."""
        explained = self._factor * max(self.simulated.kl, _LEAST_NOISE**2)
        scatter = _standard_error(self.found.divergences - self.simulated.divergences)
        return min(explained + _STANDARD_ERRORS * scatter, _MOST * explained)

    @property
    def shift(self) -> float:
        """Change of the mean negative log-likelihood per token, nats."""
        return float(_change(self.found).mean())

    @property
    def shift_bound(self) -> float:
        """The most that its magnitude may be."""
        explained = self._factor * abs(float(_change(self.simulated).mean()))
        return explained + _STANDARD_ERRORS * _standard_error(_change(self.found))

    @property
    def holds(self) -> bool:
        """Whether the runtime differs from the reference by no more than was to be expected."""
        return self.found.kl <= self.kl_bound and abs(self.shift) <= self.shift_bound

    @property
    def reason(self) -> str:
        """What a failure means."""
        known = "its rounding of activations" if self.rounds else "another order of summation"
        return (
            f"KL {self.found.kl:.1e} from the reference where {known} explains "
            f"{self.simulated.kl:.1e} (bound {self.kl_bound:.1e}), and log-likelihood shifted by "
            f"{self.shift:+.1e} nats per token (bound {self.shift_bound:.1e})"
        )

    def to_json(self) -> dict[str, Any]:
        """The simulation and the bounds, for machines."""
        return {
            "simulated_kl": self.simulated.kl,
            "kl_bound": self.kl_bound,
            "shift": self.shift,
            "shift_bound": self.shift_bound,
            "rounds": self.rounds,
        }

    @property
    def _factor(self) -> float:
        return _ROUNDING_FACTOR if self.rounds else _SUMMATION_FACTOR


def _change(comparison: Comparison) -> NDArray[np.float64]:
    return comparison.target.nll - comparison.reference.nll


def _standard_error(values: NDArray[np.float64]) -> float:
    return math.sqrt(float(values.var()) / max(1, len(values) - 1))
