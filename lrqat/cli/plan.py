"""Choose the grid of every weight for a file of a given size, or draw KL against size.

What each weight adds to the KL of the model on each grid is measured on the text, before anything
is trained; grids are then allotted so that the sum is least within the size. The result is a
recipe, which `lrqat train --recipe` takes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrqat.atomic_files import replaced_file
from lrqat.cli import command
from lrqat.errors import UserError
from lrqat.grids.backends import CHOICES
from lrqat.recipes.recipe_file import write_recipe


def build_parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__ or "")
    parser.add_argument("model", metavar="MODEL", help="model folder, .gguf file or hub id")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="its tokenizer, if not its own")
    parser.add_argument("--text-model", action="store_true",
                        help="of a model that takes images or sound too, the language model inside "
                        "it alone")  # fmt: skip
    parser.add_argument("--adapter", metavar="FOLDER[:WEIGHT]", action="append", default=[],
                        help="PEFT LoRA that is merged into it; several add up")  # fmt: skip
    parser.add_argument("--data", required=True, action="append", metavar="SOURCE",
                        help="text to measure on, as for train; may be given again")  # fmt: skip
    parser.add_argument("--target-size", help="bytes of the GGUF file, as 70MB")
    parser.add_argument("--target-bits", type=float, help="bits per weight of the whole file")
    parser.add_argument("--for", dest="for_", choices=CHOICES,
                        help="only grids that this back-end runs fast")  # fmt: skip
    parser.add_argument("--frontier", action="store_true", help="KL for every size")
    parser.add_argument("--picture", metavar="FILE.png", help="draw the frontier")
    parser.add_argument("--save-recipe", metavar="FILE.yaml", help="write what was chosen")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument("--trust-remote-code", action="store_true",
                        help="run Python code that the model brings")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    out = command.Output(args.json)
    if not args.frontier and args.target_size is None and args.target_bits is None:
        raise UserError("nothing to plan; give --target-size, --target-bits or --frontier")
    from lrqat.cli.gguf_size import gguf_bytes
    from lrqat.training.planner import Planner

    planner = Planner.open(
        args.model,
        tuple(args.data),
        target_size=args.target_size,
        target_bits=args.target_bits,
        for_=args.for_,
        tokenizer=args.tokenizer,
        adapter=tuple(args.adapter),
        text_model=args.text_model,
        trust_remote_code=args.trust_remote_code,
        say=out.say,
        file_bytes=gguf_bytes,
    )
    found: dict[str, Any] = {}
    if args.target_size is not None or args.target_bits is not None:
        chosen = planner.choose()
        size = _show_chosen(out, planner, chosen)
        found["chosen"] = {"bytes": chosen.nbytes, "kl": chosen.kl, "grids": chosen.grids}
        found["chosen"] |= size
        if args.save_recipe:
            write_recipe(planner.recipe(chosen), args.save_recipe, overwrite=args.overwrite)
            out.say(f"recipe in {args.save_recipe}; next: lrqat train --recipe {args.save_recipe}")
    if args.frontier:
        frontier = planner.frontier()
        found |= frontier.to_json()
        _show_frontier(out, frontier, args.picture, args.overwrite)
    out.result(found)
    return command.OK


def _show_chosen(out: command.Output, planner: Any, chosen: Any) -> dict[str, Any]:
    """Print the grids, and give the size of the file for `--json`, exact if the exporter knows."""
    from lrqat.cli.gguf_size import GgufSize, find_gguf_size
    from lrqat.cli.train_plan import show_grids
    from lrqat.training.budget import describe_kl

    surgery = planner.surgery_of(chosen)
    show_grids(out, surgery)
    size = find_gguf_size(planner.settings, surgery) or GgufSize(chosen.nbytes, None)
    out.say(f"{size.line()}; {describe_kl(chosen)}")
    return size.to_json()


def _show_frontier(
    out: command.Output, frontier: Any, picture: str | None, overwrite: bool
) -> None:
    files = [("allotted", point) for point in frontier.points] + list(frontier.recipes.items())
    files.sort(key=lambda file: file[1].nbytes)
    rows = [
        (name, f"{p.nbytes / 1e6:.1f}", f"{p.estimate:.4g}", "" if p.kl is None else f"{p.kl:.4g}")
        for name, p in files
    ]
    columns = ("file", "MB", "KL (estimated)", "KL (measured)")
    out.table("", columns, rows)
    if picture:
        from lrqat.training.plots import plot_frontier

        ours = [
            (p.nbytes / 1e6, p.estimate if p.kl is None else p.kl, p.kl is not None)
            for p in frontier.points
        ]
        theirs = {n: (p.nbytes / 1e6, p.estimate) for n, p in frontier.recipes.items()}
        with replaced_file(Path(picture), overwrite=overwrite) as path:
            plot_frontier(ours, theirs, path)
        out.say(f"picture in {picture}")
