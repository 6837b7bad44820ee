"""Timing calls that take turns in one process.

A ratio is that of two calls of the same round: on a machine with other work, single times mean
little.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lrqat.errors import UserError

_QUARTILES = ("lower", "median", "upper")
Progress = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Times:
    """Times of a contender's calls and of the baseline's in the same rounds, in seconds.

    Attributes:
        wall: by the clock.
        cpu: of this process, all threads; other work on the machine disturbs it less.
        ratio: quartiles of wall over the baseline's wall.
        cpu_ratio: the same of cpu.
        cpu_ratio_interval: where its median is with 95 % confidence, whatever its distribution.
    """

    wall: float
    cpu: float
    ratio: tuple[float, float, float]
    cpu_ratio: tuple[float, float, float]
    cpu_ratio_interval: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Medians and quartiles for machines."""
        return {
            "wall_seconds": self.wall,
            "cpu_seconds": self.cpu,
            "ratio": dict(zip(_QUARTILES, self.ratio, strict=True)),
            "cpu_ratio": dict(zip(_QUARTILES, self.cpu_ratio, strict=True)),
            "cpu_ratio_interval": list(self.cpu_ratio_interval),
        }


def check_rounds(rounds: int) -> None:
    """Raise UserError for fewer than two rounds."""
    if rounds < 2:
        raise UserError(f"--rounds {rounds} leaves no spread; give at least 2")


def time_in_turns(
    calls: Mapping[str, Callable[[], Any]],
    baseline: str,
    *,
    rounds: int,
    progress: Progress = lambda items: items,
) -> dict[str, Times]:
    """Times of every call, by its name.

    Args:
        calls: what to time, one after the other in every round.
        baseline: name of the call that ratios are taken to.
        rounds: counted rounds; one more goes before them.
        progress: wraps the iterable of rounds.

    Raises:
        UserError: fewer than two rounds.
    """
    check_rounds(rounds)
    for call in calls.values():
        call()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in progress(range(rounds)):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return summarise(times, baseline)


def summarise(times: Mapping[str, list[tuple[float, float]]], baseline: str) -> dict[str, Times]:
    """Medians, and ratios round by round, of (wall, cpu) seconds of every call."""
    result = {}
    for name, spent in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*spent, strict=True))
        pairs = list(zip(spent, times[baseline], strict=True))
        walls, cpus = ([a[i] / b[i] for a, b in pairs] for i in (0, 1))
        interval = _median_interval(cpus)
        result[name] = Times(wall, cpu, _quartiles(walls), _quartiles(cpus), interval)
    return result


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, median, upper


def _median_interval(values: list[float]) -> tuple[float, float]:
    """Order statistics that enclose the median in 95 of 100 samples; the ends of small ones."""
    ordered, n = sorted(values), len(values)
    lower = max(0, int(n / 2 - 0.98 * n**0.5 - 0.5))  # 1.96 standard deviations of a binomial
    return ordered[lower], ordered[n - 1 - lower]


def spread(quartiles: tuple[float, float, float]) -> str:
    """Median and quartiles, for a table."""
    lower, median, upper = quartiles
    return f"{median:.3f} ({lower:.3f} to {upper:.3f})"


def mib(size: int) -> str:
    """Bytes in MiB, for a table."""
    return f"{size / 2**20:,.1f}"
