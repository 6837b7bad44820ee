"""Export a fused checkpoint to GGUF (llama.cpp) or ONNX (ONNX Runtime), bit for bit.

What cannot be exact is refused, with the reason and the exact alternatives.
"""

import argparse
import dataclasses
import time
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exporters.format import FORMATS, AnyFormat, Plan, Report, load_format, load_options
from lrqat.atomic_files import refuse_overlap, refuse_unwritable
from lrqat.checkpoint.reader import Checkpoint
from lrqat.cli import command
from lrqat.cli.next_steps import after_export
from lrqat.doctor.subject import subject_of_path
from lrqat.doctor.verdict import judge, one_line
from lrqat.errors import RuntimeUnavailableError
from lrqat.progress import tqdm


def build_parser(name: str | None = None) -> argparse.ArgumentParser:
    """The parser for one format; for none yet, one whose --help shows the options of all."""
    parser = command.parser(__doc__ or "")
    parser.add_argument("checkpoint", help="folder of a fused checkpoint, from `lrqat train`")
    parser.add_argument("--format", required=True, help=f"one of {', '.join(FORMATS)}")
    parser.add_argument("--output", help="file or folder; default: inside the checkpoint's folder")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    command.add_accept_option(parser)
    if name:
        _add_options(parser, name)
    else:
        parser.appendix = "\n".join(_help_on_options(name) for name in FORMATS)
    return parser


def _add_options(parser: argparse.ArgumentParser, name: str) -> None:
    group = parser.add_argument_group(f"options of {name}")
    for field in dataclasses.fields(load_options(name)):
        flag = "--" + field.name.replace("_", "-")
        if field.type is bool:
            group.add_argument(
                flag, action="store_true", default=argparse.SUPPRESS, help=field.metadata["help"]
            )
            continue
        shown = field.metadata.get("default", field.default)
        group.add_argument(
            flag,
            type=_converter(field.type),
            default=argparse.SUPPRESS,
            metavar=field.name.rpartition("_")[2].upper(),
            help=field.metadata["help"] + (f" (default: {shown})" if shown is not None else ""),
        )


def _help_on_options(name: str) -> str:
    """The options of a format alone: two formats may have one of the same name."""
    alone = argparse.ArgumentParser(add_help=False, usage=argparse.SUPPRESS)
    try:
        _add_options(alone, name)
    except RuntimeUnavailableError as error:  # of a format that nobody has asked for yet
        return f"options of {name}: {error}\n"
    return alone.format_help()


def _converter(hint: Any) -> type:
    """The type that the text of an option is converted to: str unless the field is a number."""
    kinds = [hint, *typing.get_args(hint)]
    return next((kind for kind in kinds if kind in (int, float)), str)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse with the options of the chosen format only; --help shows those of all."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--format")
    chosen = first.parse_known_args(argv)[0].format
    if chosen is None:
        return build_parser().parse_args(argv)
    load_options(chosen)  # a wrong name gets our message, with the nearest one
    return build_parser(chosen).parse_args(argv)


def _write(exporter: AnyFormat, plan: Plan, path: Path, overwrite: bool) -> Report:
    """Write and verify, with a bar for each."""
    count = len(plan.tensors)
    with (
        tqdm(desc=f"writing {path.name}", unit="tensor", total=count) as written,
        tqdm(desc="verifying", unit="tensor", total=count) as verified,
    ):
        report = exporter.write(
            plan,
            path,
            overwrite=overwrite,
            progress=lambda name: written.update(1),
            verified=lambda name: verified.update(1),
        )
        written.close()  # in a log file the last lines come in this order
        return report


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    out = command.Output(args.json)
    exporter = load_format(args.format)
    names = {field.name for field in dataclasses.fields(exporter.Options)} & vars(args).keys()
    chosen = {name: getattr(args, name) for name in names}
    options = dataclasses.replace(exporter.Options(), **chosen)  # before anything is read
    command.accept_changes(args, args.checkpoint, out)
    checkpoint = Checkpoint.open(args.checkpoint)
    plan = exporter.plan(checkpoint, options)
    name = args.output or checkpoint.path / exporter.default_name(checkpoint, options)
    path = Path(name)
    tree = vars(args).get("converter")
    read = [("the checkpoint", checkpoint.path), ("--converter", tree)]
    refuse_overlap(path, read, inside=True)
    refuse_overlap(path, [("the checkpoint's", part) for part in checkpoint.parts])
    refuse_unwritable(path, folder=FORMATS[args.format].folder, needed=plan.tensor_bytes)
    if args.dry_run:
        for line in plan.summary():
            out.say(line)
        if not plan.refusals:
            out.next("the same without --dry-run")
        out.result(plan.to_json())
        return command.BAD_INPUT if plan.refusals else command.OK
    start = time.monotonic()
    report = _write(exporter, plan, path, args.overwrite)
    seconds = time.monotonic() - start
    said = f"{report.bytes:,} bytes in {seconds:.1f} s, {plan.compared} verified bit for bit"
    if report.rounded:
        said += f", {report.rounded:,} unquantized weights rounded as asked"
    out.say(f"{report.path}: {said}")
    for note in report.to_json().get("notes", ()):
        out.say(f"note: {note}")
    out.say(one_line(judge(subject_of_path(report.path))))
    out.next(after_export(checkpoint.path, report.path))
    out.result(report.to_json() | {"seconds": seconds})
    return command.OK
