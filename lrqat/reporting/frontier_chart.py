"""KL against the size of the file."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from lrqat.foreign_text import shown
from lrqat.reporting.charts import Chart
from lrqat.reporting.material import Frontier, Model
from lrqat.reporting.svg import INK, MUTED, colour, drawn, logarithmic

_NAME = 16  # characters of a recipe's


def _name(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write names at points, but for those that would stand upon another; a table has them all."""
    taken: list[tuple[float, float]] = []
    for name, x, y in points:
        if y <= 0:
            continue
        across, up = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
        if all(abs(across - a) > 0.13 or abs(up - u) > 0.06 for a, u in taken):
            taken.append((across, up))
            right = across > 0.85
            where, side = ((-4, 3), "right") if right else ((4, 3), "left")
            said = axes.annotate(shown(name)[:_NAME], (x, y), xytext=where, ha=side,
                                 textcoords="offset points", fontsize=8, color=MUTED)  # fmt: skip
            said.set_in_layout(False)


def frontier(found: Frontier, models: Sequence[tuple[Model, float]]) -> Chart:
    """KL over the size of the file, with llama-quantize's recipes and the models of the report."""
    sure = [point for point in found.points if point.measured is not None]

    def draw(axes: Axes) -> None:
        axes.plot([p.bytes / 1e6 for p in found.points], [p.kl for p in found.points],
                  color=colour(0))  # fmt: skip
        axes.plot([p.bytes / 1e6 for p in sure], [p.kl for p in sure], "o", color=colour(0), ms=4)
        for recipe in found.recipes:
            axes.plot(recipe.bytes / 1e6, recipe.kl, "x", color=colour(1), ms=5)
        for model, kl in models:
            axes.plot(model.bytes / 1e6, kl, "*", color=INK, ms=8)
        axes.set(xlabel="GGUF file (MB)", ylabel="KL (nats)")
        logarithmic(axes.yaxis)
        _name(axes, [(recipe.name, recipe.bytes / 1e6, recipe.kl) for recipe in found.recipes])

    first, last = found.points[0], found.points[-1]
    words = (
        f"from {first.kl:.3g} nats at {first.bytes / 1e6:.1f} MB to {last.kl:.3g} at "
        f"{last.bytes / 1e6:.1f} MB"
    )
    legend = ((1, "allotted (line: estimated, dots: measured)"), (2, "llama-quantize's recipes"))
    note = "Stars: the files of this report, each on the text that it was measured on."
    note = note if models else ""
    return Chart("KL against size", drawn(draw), f"KL against size: {words}.", legend, note)
