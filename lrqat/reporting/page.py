"""The page: material in, one HTML file out, which needs nothing beside itself.

Names, texts and tokens come from anybody. Jinja2 escapes whatever is not markup of our own, data
for the script is JSON in which no tag can stand, and the page's own policy lets no script run but
the one whose hash it names, and nothing be loaded.
"""

import base64
import hashlib
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import lrqat
from lrqat.atomic_files import replaced_file
from lrqat.foreign_text import shown
from lrqat.reporting import frontier_chart, heat_map, run_charts, token_charts, weight_charts
from lrqat.reporting.material import Layer, Material
from lrqat.reporting.summary import Row, absent, rows_of

_FIGURES = 4
_MOST_LAYERS = 10  # that are shown at once, those with the largest error


def write_report(material: Material, path: Path, *, title: str | None, overwrite: bool) -> int:
    """Write the page.

    Args:
        material: what it is about.
        path: the file; it appears when it is complete.
        title: of the page; None: the names of the models.
        overwrite: replace `path` if it exists.

    Returns:
        Bytes written.

    Raises:
        OutputError: `path` exists or cannot be written.
    """
    with replaced_file(path, overwrite=overwrite) as staged:
        text = render(material, title)
        staged.write_text(text, encoding="utf-8", newline="\n")
        return staged.stat().st_size


def render(material: Material, title: str | None = None) -> str:
    """The page as text."""
    rows = rows_of(material)
    script = _own("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _environment().get_template("report.html").render(
        title=title or _title(rows),
        version=lrqat.__version__,
        rows=rows,
        proofs=[row for row in rows if row.proof],
        run=_run(rows),
        tokens=_tokens(rows),
        layers=_layers(rows),
        frontiers=_frontiers(material, rows),
        absent=list(absent(material, rows)),
        levels=_level_names(),
        style=Markup(_own("report.css")),
        script=Markup(script),
        script_hash=digest,
    )  # fmt: skip


def _own(name: str) -> str:
    """A file of the package."""
    return (resources.files("lrqat.reporting") / "templates" / name).read_text(encoding="utf-8")


def _environment() -> Environment:
    made = Environment(
        autoescape=True,
        loader=PackageLoader("lrqat.reporting"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: shown(value) if type(value) is str else value,
    )
    made.filters |= {"size": size, "share": share, "figure": figure, "in_line": heat_map.in_line}
    return made


def size(count: int) -> str:
    """Bytes for people."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} bytes"


def share(value: float) -> str:
    """A share in percent, with three figures."""
    return f"{100 * value:.3g}%"


def figure(value: float | None) -> str:
    """A number with four figures; a dash where there is none."""
    return "\u2013" if value is None else f"{value:.{_FIGURES}g}"


def _title(rows: list[Row]) -> str:
    names = [row.label for row in rows]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _run(rows: list[Row]) -> dict[str, Any]:
    """The course of every run."""
    runs = {row.label: row.model.training for row in rows if row.model and row.model.training}
    histories = {name: training.history for name, training in runs.items() if training.history}
    blocks = {name: training.blocks for name, training in runs.items() if training.blocks}
    plots = [run_charts.loss(histories), run_charts.changed(histories), run_charts.rates(histories)]
    if blocks:
        plots += [run_charts.block_errors(blocks), run_charts.block_changes(blocks)]
    return {"runs": runs, "blocks": blocks, "charts": [plot for plot in plots if plot]}


def _tokens(rows: list[Row]) -> dict[str, Any]:
    """KL token by token of every model that has it."""
    found = {row.label: row.tokens for row in rows if row.tokens and row.tokens.tokens}
    return {
        "charts": [token_charts.divergences(found), token_charts.concentration(found)]
        if found
        else [],
        "models": [
            {
                "name": name,
                "found": each,
                "share_of_worst": heat_map.share_of_worst(each),
                "worst": heat_map.worst_of(each),
                "windows": heat_map.windows_of(each),
                "all_windows": len({token.window for token in each.tokens}),
                "most": max(kl for group in each.groups.values() for kl, _ in group.values())
                if any(each.groups.values())
                else 0.0,
            }
            for name, each in found.items()
        ],
    }


def _layers(rows: list[Row]) -> dict[str, Any]:
    """The weights of every model that has a list of them, those with the largest error first."""
    found = {row.label: row.model.layers for row in rows if row.model and row.model.layers}
    plots = [weight_charts.layer_errors(found), weight_charts.layer_changes(found)]
    return {
        "charts": [plot for plot in plots if plot],
        "models": [
            {
                "name": name,
                "worst": _worst(layers),
                "all": layers if layers != _worst(layers) else (),
                "columns": _columns(layers),
            }
            for name, layers in found.items()
        ],
    }


def _worst(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Those with the largest error; all where they are few, none where it is not known."""
    if len(layers) <= _MOST_LAYERS:
        return layers
    known = [layer for layer in layers if layer.error is not None]
    return tuple(sorted(known, key=lambda layer: -(layer.error or 0))[:_MOST_LAYERS])


def _columns(layers: tuple[Layer, ...]) -> set[str]:
    """Names of what is known of some of the weights."""
    optional = ("error", "changed_in_blocks", "changed", "sensitivity", "integers")
    return {name for name in optional if any(getattr(x, name) not in (None, ()) for x in layers)}


def _frontiers(material: Material, rows: list[Row]) -> dict[str, Any]:
    """The frontiers, with the GGUF files among the models."""
    files = [(row.model, row.kl) for row in rows if row.model and row.kl and row.model.bytes]
    exported = [(model, kl) for model, kl in files if model.kind == "GGUF"]
    known = [each for each in material.frontiers if each.points]
    return {"charts": [frontier_chart.frontier(each, exported) for each in known], "tables": known}


def _level_names() -> list[str]:
    edges = [f"{edge:g}" for edge in heat_map.LEVELS]
    middle = [f"{low} to {high}" for low, high in pairwise(edges)]
    return [f"below {edges[0]}", *middle, f"{edges[-1]} and more"]
