"""Errors and changes of the weights of models."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from lrqat.reporting.charts import DASHES, Chart, chart_of
from lrqat.reporting.material import Layer
from lrqat.reporting.svg import colour, logarithmic, whole_numbers


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
    return chart_of("Error of each weight", list(series), words, draw, note)


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
            style = DASHES[stages.index(stage)]
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
    return chart_of("Integers changed in each weight", names, words, draw, note)


def _block(layer: Layer) -> int:
    """The number of the block that a weight is in; -1 of none."""
    return next((int(part) for part in layer.name.split(".") if _is_number(part)), -1)


def _is_number(part: str) -> bool:
    return part.isdecimal() and len(part) < 10  # names are foreign, and int() has limits


def _by_projection(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        projection = [part for part in layer.name.split(".") if not _is_number(part)][-1:]
        found.setdefault("".join(projection), []).append(layer)
    return found
