"""Write one HTML file about runs and files: what was trained, where it hurts, and the proof.

Give what there is, in any order: folders of runs, .gguf files, ONNX folders, and the files that
lrqat evaluate --tokens, lrqat parity --json and lrqat plan --frontier --json made. Several models
stand side by side. The page says what it has not, and which command makes it.

With --base and --data the KL of every token is measured here, of each model that has none.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lrqat.atomic_files import refuse_existing
from lrqat.cli import command
from lrqat.errors import UserError
from lrqat.evaluation.text import EvaluationText
from lrqat.progress import tqdm


def build_parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__ or "")
    parser.add_argument("inputs", nargs="+", metavar="RUN_OR_FILE", help="what to report on")
    parser.add_argument("--output", default="report.html", metavar="FILE", help="the page")
    parser.add_argument("--title", help="of the page; default: the names of the models")
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="what the models were made from: weights are compared with its own, and with --data "
        "so is every token; default for weights: the model that a run names, if it is here",
    )
    command.add_text_options(parser, required=False)
    parser.add_argument("--overwrite", action="store_true", help="replace --output")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    out = command.Output(args.json)
    if args.data and not args.base:
        raise UserError("--data measures KL from a base; give the base with --base")
    refuse_existing(Path(args.output), args.overwrite)
    text = EvaluationText.read(args.data) if args.data else None
    from lrqat.reporting.page import write_report
    from lrqat.reporting.sources import gather

    material = gather(args.inputs, args.base, _progress("weights", "weight"))
    if text is not None:
        from lrqat.reporting.measuring import measure_missing

        measure_missing(
            material,
            args.base,
            text.text,
            context=args.context,
            limit=args.windows,
            progress=lambda name: _progress(Path(name).name, "window"),
        )
    written = write_report(material, Path(args.output), title=args.title, overwrite=args.overwrite)
    out.say(f"report in {args.output}, {written:,} bytes; open it in a browser")
    counts = {"models": len(material.models), "tokens": len(material.tokens)}
    counts |= {"proofs": len(material.proofs), "frontiers": len(material.frontiers)}
    out.result({"output": args.output, "bytes": written} | counts)
    return command.OK


def _progress(what: str, unit: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    return lambda items: tqdm(items, desc=what, unit=unit)
