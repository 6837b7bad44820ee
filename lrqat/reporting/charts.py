"""The plots of a report: each with what it shows in words, for those who cannot see it."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from lrqat.foreign_text import shown
from lrqat.reporting.material import Block, Frontier, Layer, Model, TokenKL
from lrqat.reporting.svg import INK, MUTED, colour, drawn, logarithmic, whole_numbers

_LEAST_KL = 1e-6  # nats, below which a difference is one of summation
_BINS = np.geomspace(_LEAST_KL, 30, 60)
_NAME = 16  # characters of a recipe's
_DASHES, _DASH_NAMES = ("-", "--", ":", "-."), ("Solid", "Dashed", "Dotted", "Dash-dotted")


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


def _chart(
    title: str,
    names: Sequence[str],
    words: Sequence[str],
    draw: Callable[[Axes], None],
    note: str = "",
) -> Chart:
    """A chart of series with these names, each told in words."""
    legend = tuple((1 + n % 8, name) for n, name in enumerate(names)) if len(names) > 1 else ()
    told = [f"{name}: {said}" if legend else said for name, said in zip(names, words, strict=True)]
    return Chart(title, drawn(draw), f"{title}. {'; '.join(told)}.", legend, note)


Histories = Mapping[str, Sequence[Mapping[str, float]]]


def _course(title: str, label: str, key: str, histories: Histories, *, share: bool) -> Chart | None:
    """A number of the steps, a line for each run."""
    found = {n: [r for r in rows if key in r and "step" in r] for n, rows in histories.items()}
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
    return _chart(title, list(found), words, draw)


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
            for key, style in zip(keys, itertools.cycle(_DASHES), strict=False):
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
    named = zip(_DASH_NAMES, keys, strict=False)
    note = " ".join(f"{dash}: {_called(key)}." for dash, key in named)
    return _chart("Rates", list(histories), words, draw, note)


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
    return _chart("Error of each block", list(blocks), words, draw, note)


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
    return _chart("Integers changed in each block", list(blocks), words, draw)


def layer_errors(layers: Mapping[str, Sequence[Layer]]) -> Chart | None:
    """The error of the weights of blocks: of one model by projection, else a line for each model.

    None where no error is known.
    """
    known = {n: [x for x in each if x.error and _block(x) >= 0] for n, each in layers.items()}
    known = {name: each for name, each in known.items() if each}
    if not known:
        return None
    single = len(known) == 1
    series = _by_projection(next(iter(known.values()))) if single else known

    def draw(axes: Axes) -> None:
        for n, each in enumerate(series.values()):
            places = [_block(layer) for layer in each] if single else range(len(each))
            errors = [layer.error or 0.0 for layer in each]
            axes.plot(places, errors, "o-" if single else "-", color=colour(n), ms=3)
        where = "block" if single else "weight, in the order of the model"
        axes.set(xlabel=where, ylabel="relative squared error")
        whole_numbers(axes)
        logarithmic(axes.yaxis)

    words = [
        f"between {min(x.error or 0 for x in each):.3g} and {max(x.error or 0 for x in each):.3g}"
        for each in series.values()
    ]
    note = "Of the weights inside blocks; embedding and head are in the table."
    return _chart("Error of each weight", list(series), words, draw, note)


def layer_changes(layers: Mapping[str, Sequence[Layer]]) -> Chart | None:
    """The share of integers that the stages changed in each weight inside a block, or None."""
    known = {n: [x for x in each if _block(x) >= 0] for n, each in layers.items()}
    stages = ("changed_in_blocks", "changed")
    found = {
        (name, stage): [getattr(layer, stage) for layer in each]
        for name, each in known.items()
        for stage in stages
        if each and all(getattr(layer, stage) is not None for layer in each)
    }
    if not found:
        return None
    names = list(dict.fromkeys(name for name, _ in found))

    def draw(axes: Axes) -> None:
        for (name, stage), shares in found.items():
            style = _DASHES[stages.index(stage)]
            axes.plot(shares, color=colour(names.index(name)), linestyle=style, linewidth=1.2)
        axes.set(xlabel="weight, in the order of the model", ylabel="of its integers")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylim(bottom=0)

    words = [
        ", ".join(
            f"{np.mean(shares):.2%} {'in blocks' if stage == stages[0] else 'by steps'} on average"
            for (own, stage), shares in found.items()
            if own == name
        )
        for name in names
    ]
    note = "Solid: in the block-wise stage. Dashed: by the steps of the whole model."
    return _chart("Integers changed in each weight", names, words, draw, note)


def _block(layer: Layer) -> int:
    """The number of the block that a weight is in; -1 of none."""
    return next((int(part) for part in layer.name.split(".") if part.isdecimal()), -1)


def _by_projection(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        projection = [part for part in layer.name.split(".") if not part.isdecimal()][-1]
        found.setdefault(projection, []).append(layer)
    return found


def divergences(tokens: Mapping[str, TokenKL]) -> Chart:
    """How the KL of single tokens is spread, a line for each model."""
    kls = {name: np.array([t.kl for t in each.tokens]) for name, each in tokens.items()}
    low = min(float(np.quantile(values, 0.002)) for values in kls.values())
    least = max(_LEAST_KL, 10 ** np.floor(np.log10(max(low, _LEAST_KL))))

    def draw(axes: Axes) -> None:
        for n, values in enumerate(kls.values()):
            counts, edges = np.histogram(np.clip(values, least, _BINS[-1]), _BINS)
            axes.stairs(counts / len(values), edges, color=colour(n), linewidth=1.7)
            axes.stairs(counts / len(values), edges, color=colour(n), fill=True, alpha=0.12)
            axes.axvline(max(float(values.mean()), least), color=colour(n), linestyle=":")
        axes.set(xlabel="KL of a token (nats)", ylabel="of all tokens")
        axes.set_xlim(least, _BINS[-1])
        logarithmic(axes.xaxis)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    words = [
        f"half of the tokens below {np.quantile(v, 0.5):.3g}, 99% below "
        f"{np.quantile(v, 0.99):.3g}, the mean {v.mean():.3g}, the most {v.max():.3g}"
        for v in kls.values()
    ]
    note = f"Dotted: the mean. What is below {least:g} stands at the left edge."
    return _chart("KL of single tokens", list(kls), words, draw, note)


def concentration(tokens: Mapping[str, TokenKL]) -> Chart:
    """How much of all KL the worst tokens hold, a line for each model."""
    sums = {}
    for name, each in tokens.items():
        kls = np.sort([token.kl for token in each.tokens])[::-1]
        sums[name] = np.cumsum(kls) / max(float(kls.sum()), _LEAST_KL)

    def draw(axes: Axes) -> None:
        for n, held in enumerate(sums.values()):
            axes.plot(np.arange(1, len(held) + 1) / len(held), held, color=colour(n))
        axes.set(xlabel="of all tokens, the worst first", ylabel="of all KL", ylim=(0, 1.02))
        logarithmic(axes.xaxis)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda share, place: f"{100 * share:g}%"))

    words = [f"the worst tenth of the tokens holds {v[len(v) // 10]:.0%}" for v in sums.values()]
    return _chart("Who holds the KL", list(sums), words, draw)


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
