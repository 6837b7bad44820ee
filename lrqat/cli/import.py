"""Take over a model whose weights lie on a grid already, as a fused checkpoint: nothing is rounded.

SOURCE is a GGUF file; a folder or hub id of compressed-tensors, GPTQ, AWQ, auto-round or NVFP4; or
unquantized weights that quantization-aware training left on a grid. Every tensor is compared with
what the source's own dequantisation gives. What lies on no grid stays unquantized and is named.
"""

from collections.abc import Sequence
from typing import Any

from lrqat.cli import command
from lrqat.cli.next_steps import after_training
from lrqat.progress import tqdm


def build_parser() -> Any:
    parser = command.parser(__doc__ or "")
    parser.add_argument("source", help=".gguf file (of several, the first), folder, or hub id")
    parser.add_argument("--output", required=True, help="folder of the checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    parser.add_argument("--tokenizer", help="folder or hub id, in the place of the source's own")
    parser.add_argument(
        "--allow-inexact",
        action="store_true",
        help="put on the nearest grid what lies on none: its weights change, which is recorded",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    out = command.Output(args.json)
    from lrqat.cli.import_report import show_import
    from lrqat.importing.run import import_model

    with tqdm(desc="importing", unit=" tensors") as bar:
        report = import_model(
            args.source,
            args.output,
            tokenizer=args.tokenizer,
            allow_inexact=args.allow_inexact,
            overwrite=args.overwrite,
            progress=lambda name: bar.update(1),
        )
    show_import(out, report)
    exact = sum(each.is_exact for each in report.tensors)
    out.say(
        f"{report.path}: {exact} of {len(report.tensors)} tensors on a grid, every weight as "
        f"{report.kind} has it"
    )
    if report.inexact:
        out.warn(f"{len(report.inexact)} tensors were rounded to the nearest grid, as asked")
    out.next(after_training(report.path, in_gguf=True), "or --format onnx")
    out.result(report.to_json())
    return command.OK
