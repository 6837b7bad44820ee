"""From the sum of the weights' losses to the KL of the model, by a few mixes that were measured.

The sum is of second order and takes the weights one by one. What it leaves out grows with the loss:
where 4 bits lose 1.2 times the sum, 2 bits lose twice or three times as much.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lrqat.budget.prices import Allotment

_LEAST = 1e-9  # nats: below is rounding of the logits


@dataclass(frozen=True)
class Calibration:
    """Factors between the sum of losses and the KL, at some sums.

    Attributes:
        points: (logarithm of the sum, logarithm of the factor), the smallest sum first.
    """

    points: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(cls, measured: Sequence[Allotment]) -> "Calibration":
        """From allotments whose KL was measured; those without are left out."""
        points = {
            math.log(each.estimate): math.log(max(each.kl, _LEAST) / each.estimate)
            for each in measured
            if each.kl is not None and each.estimate > _LEAST
        }
        return cls(tuple(sorted(points.items())))

    def kl(self, estimate: float) -> float:
        """The KL that a sum of losses stands for, in nats a token.

        Between two points the logarithm of the factor is interpolated, outside it is the nearest.
        """
        if not self.points or estimate <= _LEAST:
            return estimate
        x = math.log(estimate)
        below = [point for point in self.points if point[0] <= x] or [self.points[0]]
        above = [point for point in self.points if point[0] > x] or [self.points[-1]]
        (x0, y0), (x1, y1) = below[-1], above[0]
        share = min(max((x - x0) / (x1 - x0), 0.0), 1.0) if x1 > x0 else 0.0
        return estimate * math.exp(y0 + share * (y1 - y0))

    def applied(self, allotment: Allotment) -> Allotment:
        """The same with the estimate put right."""
        return replace(allotment, estimate=self.kl(allotment.estimate))
