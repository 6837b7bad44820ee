"""Perplexity of a model in its own runtime, by llama-perplexity's rule.

TARGET is a Hugging Face model, a fused checkpoint, a .gguf file (run by llama.cpp) or an ONNX
folder (run by ONNX Runtime). The numbers of all four can be compared.
"""

import argparse
from collections.abc import Sequence

from tqdm.auto import tqdm

from lrqat.cli import command
from lrqat.evaluation.text import EvaluationText


def build_parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__ or "")
    parser.add_argument("target", metavar="TARGET", help="folder, file or hub id")
    command.add_text_options(parser)
    command.add_accept_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    out = command.Output(args.json)
    command.accept_changes(args, args.target, out)
    text = EvaluationText.read(args.data)
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
