"""Grid by method: what each gives on one model and text, as a table and a picture.

Every cell is a run of `lrqat.training.train` of its own, with the same settings otherwise. A run
whose checkpoint is already there is not made again, so a table can be stopped and continued.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrqat.atomic_files import replaced_file, write_json
from lrqat.errors import UserError
from lrqat.foreign_files import read_json
from lrqat.grids.grid import find_grid
from lrqat.layers.methods import METHODS
from lrqat.training.config import TrainConfig
from lrqat.training.data.rows import STANDARD_INPUT
from lrqat.training.plan import plan_training
from lrqat.training.run import train
from lrqat.training.settings import NONE

RESULT = "result.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        grid: name of the grid.
        method: name of the method.
        bits_per_weight: of everything on a grid, scales included.
        perplexity: of the fake-quant model.
        kl: mean KL from full precision, nats.
        same_top: share of tokens where both put the same token first.
        changed: share of the integers that training changed.
        seconds: of training.
    """

    grid: str
    method: str
    bits_per_weight: float
    perplexity: float
    kl: float
    same_top: float
    changed: float
    seconds: float


def compare_methods(
    config: TrainConfig,
    grids: Sequence[str],
    methods: Sequence[str],
    say: Say = lambda message: None,
) -> list[Cell]:
    """Run every method on every grid; `config.output` gets a folder for each.

    Args:
        config: settings of every run; its grid and method are replaced, its teacher must be set.
        grids: names of grids.
        methods: names of methods.
        say: receives progress messages.

    Raises:
        UserError: no teacher to measure KL against, an unknown name, or a run that fails.
    """
    if config.teacher == NONE:
        raise UserError("a comparison measures KL and needs --teacher self, or a model")
    if any(source.name == STANDARD_INPUT for source in config.sources):
        raise UserError(
            "standard input can be read once, and every run of a comparison reads its text; write "
            "the text to a file, and give that to --data"
        )
    for method in methods:
        if method not in METHODS:
            raise UserError(f"--methods {method!r} is unknown; choose {', '.join(METHODS)}")
    runs = list(_runs(config, [find_grid(name).name for name in grids], methods))
    for run in runs:
        plan_training(run)  # refuse every impossible cell before the first run
    return [_cell(run, say) for run in runs]


def _runs(
    config: TrainConfig, grids: Sequence[str], methods: Sequence[str]
) -> Iterator[TrainConfig]:
    for grid in grids:
        for method in methods:
            output = str(Path(config.output) / f"{grid}-{method}")
            yield dataclasses.replace(config, grid=grid, method=method, output=output)


def _cell(config: TrainConfig, say: Say) -> Cell:
    result = Path(config.output) / RESULT
    if result.is_file():
        recorded: dict[str, Any] = read_json(result)
        if recorded["settings"] != config.to_json():
            raise UserError(
                f"{config.output} holds a run with other settings; give another --output"
            )
        return Cell(**recorded["cell"])
    say(f"{config.grid}, {config.method}:")
    report = train(config, resume="auto", say=say)
    assert report.kl_after is not None
    assert report.same_top_after is not None
    cell = Cell(
        grid=config.grid,
        method=config.method,
        bits_per_weight=plan_training(config).surgery.bits_per_weight,
        perplexity=report.after.perplexity,
        kl=report.kl_after,
        same_top=report.same_top_after,
        changed=report.changed,
        seconds=report.seconds,
    )
    with replaced_file(result, overwrite=True) as path:
        write_json(path, {"settings": config.to_json(), "cell": dataclasses.asdict(cell)})
    return cell


def to_markdown(cells: Sequence[Cell]) -> str:
    """A table for the documentation."""
    lines = [
        "| grid | method | bits per weight | perplexity | KL | same top token | integers changed |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{c.grid}` | {c.method} | {c.bits_per_weight:.4g} | {c.perplexity:.3f} | {c.kl:.5f} "
        f"| {c.same_top:.1%} | {c.changed:.2%} |"
        for c in cells
    ]
    return "\n".join(lines) + "\n"
