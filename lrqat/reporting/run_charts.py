"""The course of runs: over the steps, and over the blocks."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from lrqat.reporting.charts import DASH_NAMES, DASHES, Chart, chart_of
from lrqat.reporting.material import Block
from lrqat.reporting.svg import colour, logarithmic, whole_numbers

Histories = Mapping[str, Sequence[Mapping[str, float]]]


def _course(title: str, label: str, key: str, histories: Histories, *, share: bool) -> Chart | None:
    """A number of the steps, a line for each run."""
    found = {n: [r for r in rows if key in r] for n, rows in histories.items()}
    found = {name: rows for name, rows in found.items() if rows}
    if not found:
        return None
    form = (lambda v: f"{v:.2%}") if share else (lambda v: f"{v:.4g}")

    def draw(axes: Axes) -> None:
        for n, rows in enumerate(found.values()):
            steps, values = [row["step"] for row in rows], [row[key] for row in rows]
            axes.plot(steps, values, color=colour(n), marker="." if len(rows) < 4 else None)
        axes.set(xlabel="step", ylabel=label)
        whole_numbers(axes)
        if share:
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            axes.set_ylim(bottom=0)

    words = [
        f"from {form(rows[0][key])} at step {rows[0]['step']:g} to {form(rows[-1][key])} at step "
        f"{rows[-1]['step']:g}"
        for rows in found.values()
    ]
    return chart_of(title, list(found), words, draw)


def loss(histories: Histories) -> Chart | None:
    """The loss over the steps; None without steps."""
    return _course("Loss", "nats per token", "loss", histories, share=False)


def changed(histories: Histories) -> Chart | None:
    """The share of integers that the steps changed."""
    return _course("Integers changed", "of all weights", "changed", histories, share=True)


def rates(histories: Histories) -> Chart | None:
    """The rates, in the units of their settings: colours are runs, and dashes are rates."""
    keys = list(dict.fromkeys(k for r in histories.values() for x in r for k in x if _rate(k)))
    if not keys:
        return None

    def draw(axes: Axes) -> None:
        for run, rows in enumerate(histories.values()):
            for key, style in zip(keys, itertools.cycle(DASHES), strict=False):
                points = [(row["step"], row[key]) for row in rows if row.get(key, 0) > 0]
                if points:
                    axes.plot(*zip(*points, strict=True), color=colour(run), linestyle=style)
        axes.set(xlabel="step", ylabel="rate")
        whole_numbers(axes)
        logarithmic(axes.yaxis)

    words = [
        ", ".join(f"{_called(k)} at most {max(r.get(k, 0) for r in rows):.3g}" for k in keys)
        for rows in histories.values()
    ]
    named = zip(DASH_NAMES, keys, strict=False)
    note = " ".join(f"{dash}: {_called(key)}." for dash, key in named)
    return chart_of("Rates", list(histories), words, draw, note)


def _called(key: str) -> str:
    return key.removeprefix("rate_").replace("_", "-")


def _rate(key: str) -> bool:
    return key.startswith("rate_")


def block_errors(blocks: Mapping[str, Sequence[Block]]) -> Chart:
    """The error of each block before and after it was fitted."""

    def draw(axes: Axes) -> None:
        for n, each in enumerate(blocks.values()):
            numbers = np.arange(len(each))
            axes.plot(numbers, [b.before for b in each], "o--", color=colour(n), ms=3, alpha=0.55)
            axes.plot(numbers, [b.after for b in each], "o-", color=colour(n), ms=3)
        axes.set(xlabel="block", ylabel="relative squared error")
        whole_numbers(axes)
        logarithmic(axes.yaxis)

    words = [
        f"mean error from {np.mean([b.before for b in each]):.3g} to "
        f"{np.mean([b.after for b in each]):.3g} over {len(each)} blocks"
        for each in blocks.values()
    ]
    note = "Dashed: rounded to nearest. Solid: fitted. On text that was held out."
    return chart_of("Error of each block", list(blocks), words, draw, note)


def block_changes(blocks: Mapping[str, Sequence[Block]]) -> Chart:
    """The share of integers that the block-wise stage changed in each block."""

    def draw(axes: Axes) -> None:
        for n, each in enumerate(blocks.values()):
            axes.plot(range(len(each)), [b.changed for b in each], "o-", color=colour(n), ms=3)
        axes.set(xlabel="block", ylabel="of the block's weights")
        whole_numbers(axes)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylim(bottom=0)

    words = [
        f"between {min(b.changed for b in each):.2%} and {max(b.changed for b in each):.2%}"
        for each in blocks.values()
    ]
    return chart_of("Integers changed in each block", list(blocks), words, draw)
