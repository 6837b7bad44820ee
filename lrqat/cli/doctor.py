"""What this machine has, and where a model runs, and how fast.

Without arguments: Python, torch, devices, memory, disk, versions, and the extras that are missing.
With a GGUF file, an ONNX folder or a fused checkpoint, or before training with --grid or --recipe:
how every back-end does each of its types, from one table with sources. --measure runs the file on
this machine, or times llama.cpp's products with the types where there is no file yet.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lrqat.cli import command
from lrqat.errors import UserError

if TYPE_CHECKING:
    from lrqat.doctor.environment import Environment
    from lrqat.doctor.subject import Subject
    from lrqat.doctor.verdict import Verdict


def build_parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__ or "")
    parser.add_argument("file", nargs="?", metavar="FILE_OR_CHECKPOINT", help="what is to run")
    parser.add_argument("--grid", action="append", metavar="NAME", help="a grid to train on; may "
                        "be given again")  # fmt: skip
    parser.add_argument("--recipe", metavar="FILE.yaml", help="a recipe to train on")
    parser.add_argument("--measure", action="store_true", help="time it on this machine")
    parser.add_argument("--threads", type=int, help="that --measure computes on; default: one a "
                        "core")  # fmt: skip
    parser.add_argument("--sources", action="store_true", help="say where each row comes from")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    out = command.Output(args.json)
    given = [each for each in (args.file, args.grid, args.recipe) if each]
    if len(given) > 1:
        raise UserError("give one of a file, --grid and --recipe")
    if args.measure and not given:
        raise UserError("--measure needs something to measure: a file, --grid or --recipe")
    if not given:
        return _show_machine(out)
    subject = _subject(args)
    from lrqat.doctor.verdict import judge, one_line, remarks

    verdicts = judge(subject)
    _show_verdicts(out, subject, verdicts, sources=args.sources)
    for line in (one_line(verdicts), *remarks(subject)):
        out.say(line)
    measured = _measure(out, args, subject) if args.measure else None
    out.result(
        {
            "subject": subject.name,
            "types": subject.types,
            "misfits": subject.misfits,
            "backends": [each.to_json() for each in verdicts],
            "verdict": one_line(verdicts),
            "remarks": remarks(subject),
            "measured": measured,
        }
    )
    return command.OK


def _subject(args: argparse.Namespace) -> "Subject":
    from lrqat.doctor import subject

    if args.file:
        return subject.subject_of_path(args.file)
    if args.recipe:
        return subject.subject_of_recipe(args.recipe)
    return subject.subject_of_grids(", ".join(args.grid), args.grid)


def _show_machine(out: command.Output) -> int:
    from lrqat.doctor.environment import Environment

    found = Environment.find()
    for line in _machine_lines(found):
        out.say(line)
    rows = [
        (extra.name, "yes" if not extra.missing else f"no: {', '.join(extra.missing)}",
         extra.command if extra.missing else "")
        for extra in found.extras
    ]  # fmt: skip
    out.table("extras", ("extra", "installed", "command"), rows)
    out.next("lrqat doctor --grid q4_0", "or a .gguf file, an ONNX folder, a checkpoint")
    out.result({"environment": found.to_json()})
    return command.OK


def _machine_lines(found: "Environment") -> list[str]:
    bfloat16 = {
        True: "bfloat16 natively",
        False: "bfloat16 only emulated, which is slow",
        None: "bfloat16 unknown",
    }
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    memory = {name: f"{size / 2**30:.1f} GiB" for name, size in found.memory.items()}
    return [
        f"lrqat {found.lrqat}, Python {found.python}, {found.system}",
        *(f"device {name}: {what}" for name, what in found.devices.items()),
        f"CPU: {found.cores} cores, {found.cpu_vectors}, {bfloat16[found.cpu_bfloat16]}",
        f"memory: {memory['total']}, {memory['free']} of which are free",
        *(f"disk: {free / 2**30:.1f} GiB free in {place}" for place, free in found.disk.items()),
        f"versions: {versions}",
    ]


def _show_verdicts(
    out: command.Output, subject: "Subject", verdicts: "list[Verdict]", *, sources: bool
) -> None:
    for form, types in subject.types.items():
        out.say(f"{form}: {', '.join(types) or 'nothing quantized'}")
    columns = ["back-end", "runtime", "reads", "verdict", "why"] + ["source"] * sources
    rows = [
        [v.backend, v.row.runtime, v.row.reads, v.speed or "no form", v.reason]
        + [v.row.source] * sources
        for v in verdicts
    ]
    out.table(f"where {subject.name} runs", columns, rows)


def _measure(out: command.Output, args: argparse.Namespace, subject: "Subject") -> Any:
    """Time the file; of what is no file yet, llama.cpp's products with its types."""
    from exporters.format import FORMATS, recognise
    from lrqat.doctor import speed
    from lrqat.grids.backends import GGUF
    from lrqat.portable import cores

    if args.file and recognise(args.file) in FORMATS:
        found = speed.measure(args.file, args.threads or cores())
        threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
        out.say(
            f"measured here in {found.runtime}, {threads}: prompt "
            f"{found.prompt:,.0f} tokens a second, generation {found.generation:,.0f}"
        )
        return found.to_json()
    products = speed.kernels(list(subject.types.get(GGUF, {})))
    for name, rate in products.items():
        plain = ", plain C" if speed.is_plain_c(name, products) else ""
        out.say(f"measured here, one thread: {rate / 1e9:.1f} billion weights of {name} a second"
                f"{plain}")  # fmt: skip
    return {"weights_per_second": products}
