"""A plot of a report, with what it shows in words, for those who cannot see it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes

from lrqat.reporting.svg import SERIES, drawn

DASHES, DASH_NAMES = ("-", "--", ":", "-."), ("Solid", "Dashed", "Dotted", "Dash-dotted")


@dataclass(frozen=True)
class Chart:
    """A plot.

    Attributes:
        title: one line.
        svg: for a page, see `lrqat.reporting.svg`.
        words: what it shows, for those who cannot see it.
        legend: (colour by its number from 1, name) of each series; empty where there is one.
        note: how to read it, or empty.
    """

    title: str
    svg: Markup
    words: str
    legend: tuple[tuple[int, str], ...] = ()
    note: str = ""


def chart_of(
    title: str,
    names: Sequence[str],
    words: Sequence[str],
    draw: Callable[[Axes], None],
    note: str = "",
) -> Chart:
    """A chart of series with these names, each told in words."""
    legend = (
        tuple((1 + n % len(SERIES), name) for n, name in enumerate(names)) if len(names) > 1 else ()
    )
    told = [f"{name}: {said}" if legend else said for name, said in zip(names, words, strict=True)]
    return Chart(title, drawn(draw), f"{title}. {'; '.join(told)}.", legend, note)
