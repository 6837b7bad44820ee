"""Matplotlib's figures as SVG that stands in a page and takes its colours and font from there.

A figure is drawn in a few colours that stand for the page's; in the SVG each becomes a variable of
the style sheet, which has one value in light and one in the dark.
"""

import io
import itertools
import re
from collections.abc import Callable
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

INK, MUTED, LINE = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0404{n:02x}" for n in range(1, 9))
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    **{colour: f"--s{n}" for n, colour in enumerate(SERIES, 1)},
}
_SIZE = (4.7, 2.9)  # inches of 72 points: on a phone a point is about a pixel
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "lrqat",
    "text.parse_math": False,  # a name may have dollars in it
    "font.size": 9.5,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "text.color": INK,
}
_number = itertools.count(1)


def colour(index: int) -> str:
    """What a series is drawn in; after eight of them the colours come again."""
    return SERIES[index % len(SERIES)]


def drawn(draw: Callable[[Axes], None], size: tuple[float, float] = _SIZE) -> Markup:
    """The SVG of a figure with one pair of axes, on which `draw` draws."""
    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return Markup(_for_a_page(stream.getvalue(), f"f{next(_number)}"))


def whole_numbers(axes: Axes) -> None:
    """Steps and blocks are counted."""
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def logarithmic(axis: Axis) -> None:
    """Make an axis logarithmic, after all is drawn, with numbers that are written out.

    Matplotlib's own are powers, which it sets as formulas.
    """
    scale = axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale
    scale("log")
    least, most = sorted(axis.get_view_interval())
    few = most > 200 * least  # decades enough
    axis.set_major_locator(LogLocator(subs=(1.0,) if few else (1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}".replace("e-0", "e-")))


def _for_a_page(svg: str, prefix: str) -> str:
    """Without prolog, metadata and fonts, scaled by the page, with ids of its own."""
    svg = svg[svg.index("<svg") :]
    for part in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<!--.*?-->"):
        svg = re.sub(part, "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;]*; ", "", svg)
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    for place in (' id="', "url(#", 'href="#'):
        rest = rest.replace(place, f"{place}{prefix}-")
    for name, variable in _VARIABLES.items():
        rest = rest.replace(name, f"var({variable})")
    return f'<svg {box[0]} aria-hidden="true" focusable="false">{rest}'
