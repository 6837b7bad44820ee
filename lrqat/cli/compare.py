"""Train every method on every grid with the same settings, and tabulate what each gives.

Takes the options of `lrqat train` for all runs; writes a folder for each run, comparison.md and
comparison.png into --output. Started again, it goes on where it stopped.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lrqat.atomic_files import explain_os_errors, replaced_file
from lrqat.cli import command, train
from lrqat.cli.train_options import config_from
from lrqat.layers.methods import METHODS


def build_parser() -> argparse.ArgumentParser:
    parser = train.build_parser()
    parser.description = __doc__
    parser.add_argument("--grids", nargs="+", required=True, help="grids to compare")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="methods to compare")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    out = command.Output(args.json)
    from lrqat.training.comparison import compare_methods, to_markdown
    from lrqat.training.plots import plot_comparison

    cells = compare_methods(config_from(args), args.grids, args.methods, out.say)
    folder = Path(args.output)
    with explain_os_errors(folder):
        with replaced_file(folder / "comparison.md", overwrite=True) as path:
            path.write_text(to_markdown(cells), encoding="utf-8")
        plot_comparison([vars(cell) for cell in cells], folder / "comparison.png")
    out.table(
        f"{len(cells)} runs in {folder}",
        ["grid", "method", "bits/weight", "perplexity", "KL", "same top", "changed", "seconds"],
        [
            (
                c.grid, c.method, f"{c.bits_per_weight:.4g}", f"{c.perplexity:.3f}",
                f"{c.kl:.5f}", f"{c.same_top:.1%}", f"{c.changed:.2%}", f"{c.seconds:.0f}",
            )
            for c in cells
        ],
    )  # fmt: skip
    out.result({"runs": [vars(cell) for cell in cells]})
    return command.OK
