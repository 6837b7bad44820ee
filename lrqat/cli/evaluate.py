"""Perplexity of a model in its own runtime, by llama-perplexity's rule.

TARGET is a Hugging Face model, a fused checkpoint, a .gguf file (run by llama.cpp) or an ONNX
folder (run by ONNX Runtime). The numbers of all four can be compared.

With --base it is also compared with the model that it was made from, token by token.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrqat.atomic_files import refuse_existing
from lrqat.cards.measurements import BASE
from lrqat.cli import command
from lrqat.errors import UserError
from lrqat.evaluation.text import EvaluationText
from lrqat.progress import tqdm

if TYPE_CHECKING:
    from lrqat.runtimes.divergence import Divergence

_WORST = 10  # tokens that are shown


def build_parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__ or "")
    parser.add_argument("target", metavar="TARGET", help="folder, file or hub id")
    command.add_text_options(parser)
    parser.add_argument(
        "--base", metavar="MODEL", help="measure KL from this model, and show where it is large"
    )
    parser.add_argument(
        "--tokens", metavar="FILE", help="write every token's KL from --base as JSON"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --tokens")
    command.add_accept_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    out = command.Output(args.json)
    command.accept_changes(args, args.target, out)
    if args.tokens and not args.base:
        raise UserError("--tokens writes the KL from a base; give the base with --base")
    text = EvaluationText.read(args.data)
    if args.base:
        return _compare(args, out, text)
    from lrqat.models.positions import warning_beyond
    from lrqat.runtimes.targets import evaluate

    target, result = evaluate(
        args.target,
        text.text,
        context=args.context,
        limit=args.windows,
        progress=lambda windows: tqdm(windows, desc="evaluating", unit="window"),
    )
    warning = warning_beyond(target.trained, args.context, "--context")
    if warning:
        out.warn(warning)
    out.say(
        f"{target.runtime}: perplexity {result.perplexity:.4f} +/- {result.standard_error:.4f} "
        f"({result.tokens:,} tokens, {target.bytes:,} bytes)"
    )
    out.result(result.to_json() | {"runtime": target.runtime, "bytes": target.bytes})
    return command.OK


def _compare(args: argparse.Namespace, out: command.Output, text: EvaluationText) -> int:
    """Measure against a base, and show where it hurts."""
    from lrqat.runtimes.divergence import measure_divergence

    if args.tokens:
        refuse_existing(Path(args.tokens), args.overwrite)
    found = measure_divergence(
        args.target,
        args.base,
        text.text,
        context=args.context,
        limit=args.windows,
        progress=lambda windows: tqdm(windows, desc="comparing", unit="window"),
    )
    means = found.comparison
    spread = ", ".join(f"{name} {value:.4f}" for name, value in found.quantiles.items())
    out.say(
        f"{found.runtime}: perplexity {means.target.perplexity:.4f}, base "
        f"{means.reference.perplexity:.4f}; KL {means.kl:.5f} ({spread}), same top token "
        f"{means.same_top:.2%} ({len(found.tokens):,} tokens, {found.bytes:,} bytes)"
    )
    _show_where(found, out)
    if args.tokens:
        found.write(Path(args.tokens), overwrite=args.overwrite)
        out.say(f"every token in {args.tokens}")
    said = found.to_json()
    command.keep_measurement(Path(args.target), BASE, _for_card(said) | {"text": text.name}, out)
    out.result(said)
    return command.OK


def _show_where(found: "Divergence", out: command.Output) -> None:
    """Where the divergence is: groups of tokens, and the worst ones."""
    rows = [
        (heading, name, f"{kl:.4f}", f"{count:,}")
        for heading, groups in found.groups.items()
        for name, (kl, count) in groups.items()
    ]
    out.table("where it is", ("by", "tokens that are", "mean KL", "tokens"), rows)
    worst = [
        (f"{t.window}:{t.position}", f"{t.kl:.2f}", repr(t.token), repr(t.base_top), repr(t.top))
        for t in found.worst(_WORST)
    ]
    columns = ("window:position", "KL", "token", "base would say", "this says")
    out.table("the worst tokens", columns, worst)
    windows = ", ".join(f"{number} ({kl:.4f})" for number, kl in found.worst_windows(3))
    out.say(f"worst windows: {windows}")


def _for_card(said: dict[str, Any]) -> dict[str, Any]:
    """The means of a divergence: what a model card has room for."""
    return {key: value for key, value in said.items() if isinstance(value, str | int | float)}
