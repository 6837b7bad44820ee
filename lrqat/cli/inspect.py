"""What a GGUF file, an ONNX folder or a fused checkpoint holds, and whether it is exact.

Of a Hugging Face folder, quantized or not, on which grid each of its tensors lies, as `lrqat
import` would find it.

Types with their bytes, bits per weight, hyperparameters, vocabulary, and where it comes from. Files
are not trusted: one that is damaged gives a message. With --checkpoint every weight is compared
with the checkpoint that it should hold, bit for bit; exit status 1 if any differs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exporters.description import Description, differing, worst
from exporters.format import recognise
from exporters.inspection import inspect, verify
from lrqat.checkpoint.reader import Checkpoint
from lrqat.cli import command
from lrqat.errors import UserError
from lrqat.progress import tqdm


def build_parser() -> Any:
    parser = command.parser(__doc__ or "")
    parser.add_argument("file", help=".gguf file (of several, the first), or folder")
    parser.add_argument("--checkpoint", help="folder of the checkpoint to compare with")
    return parser


def show(out: command.Output, found: Description) -> None:
    size = f"{found.bytes:,} bytes"
    files = f" in {len(found.files)} files" if len(found.files) > 1 else ""
    out.say(
        f"{found.kind}, {size}{files}: {found.tensors} tensors, {found.weights:,} weights, "
        f"{found.bits_per_weight:.3f} bits each"
    )
    rows = [
        (
            kind, total.tensors, f"{total.weights:,}", f"{total.bytes:,}",
            f"{8 * total.bytes / total.weights:.3f}" if total.weights else "",
        )
        for kind, total in found.types.items()
    ]  # fmt: skip
    out.table("types", ("type", "tensors", "weights", "bytes", "bits/weight"), rows)
    for title in ("hyperparameters", "vocabulary", "provenance"):
        values: dict[str, Any] = getattr(found, title)
        for key, value in values.items():
            out.say(f"{title}: {key} = {value}")


def _show_folder(args: Any, out: command.Output) -> int:
    """On which grids the weights of a Hugging Face folder lie."""
    if args.checkpoint is not None:
        raise UserError(f"{args.file} is no exported file; leave --checkpoint out, or export first")
    from lrqat.cli.import_report import show_import
    from lrqat.importing.run import examine

    with tqdm(desc="looking", unit=" tensors") as bar:
        report = examine(args.file, progress=lambda name: bar.update(1))
    show_import(out, report)
    out.result(report.to_json())
    return command.OK


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    out = command.Output(args.json)
    if (Path(args.file) / "config.json").is_file() and recognise(args.file) is None:
        return _show_folder(args, out)
    found = inspect(args.file)
    show(out, found)
    result = found.to_json()
    exact = None
    if args.checkpoint is not None:
        compared = verify(args.file, Checkpoint.open(args.checkpoint))
        result["mismatches"] = {name: count for name, count in compared.items() if count}
        exact = not result["mismatches"]
        out.say(
            f"exact: {len(compared):,} tensors compared with {args.checkpoint}, equal bit for bit"
            if exact
            else f"NOT exact: {differing(compared)}"
        )
        for line in worst(compared):
            out.say(f"  {line}")
    out.result(result | {"exact": exact})
    return command.FAILED if exact is False else command.OK
