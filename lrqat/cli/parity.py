"""Prove exported files against the checkpoint they came from: bytes, graph, runtime.

L0 compares the integers and scales in the file with the checkpoint's, bit for bit, and names the
tensors that differ. L1 compares logits of the graph in float32 with PyTorch's. L2 compares
perplexity and KL of the real file in the real runtime with the fake-quant reference. Exit status 1
if anything fails.

ONNX Runtime's own accuracy level is 4, which rounds activations to 8 bits; files are exported for
1, which does not, and proved so. --accuracy-levels 1,4 shows what the other would cost.

--layers float32 compares the hidden states after every layer of what L1 runs with PyTorch's, and
names the first layer that is wrong; --layers file does it with the file as it is.

Last, PyTorch and each runtime continue a prompt: a sample, from which nothing follows.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.description import differing, worst
from lrqat.cards.measurements import PARITY
from lrqat.checkpoint import manifest
from lrqat.cli import command
from lrqat.cli.next_steps import after_proof
from lrqat.errors import UserError
from lrqat.evaluation.perplexity import Comparison
from lrqat.evaluation.text import EvaluationText
from lrqat.progress import tqdm

if TYPE_CHECKING:
    from lrqat.runtimes.layer_trace import LayerTrace
    from lrqat.runtimes.proof import Proof

_PROMPT_CHARACTERS, _SAMPLE_TOKENS = 40, 32


def build_parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__ or "")
    parser.add_argument("checkpoint", help="folder of the fused checkpoint")
    parser.add_argument("files", nargs="+", metavar="FILE", help=".gguf files and ONNX folders")
    command.add_text_options(parser)
    command.add_accept_option(parser)
    parser.add_argument(
        "--kl-divergence-base",
        metavar="FILE",
        type=Path,
        help="also write the reference's predictions as llama-perplexity's option of this name "
        "reads them",
    )
    parser.add_argument(
        "--converter",
        metavar="TREE",
        help="source tree of llama.cpp, for a .gguf file that was exported with this option",
    )
    parser.add_argument(
        "--accuracy-levels",
        metavar="LEVELS",
        type=_levels,
        default=[],
        help="also measure ONNX folders at these levels of ONNX Runtime, with commas between them: "
        "0 and 1 compute in float32, 4 rounds activations to 8 bits",
    )
    parser.add_argument(
        "--layers",
        choices=("float32", "file"),
        help="also say after which layer activations first leave PyTorch's: in float32, as L1 runs "
        "the file, or as it is, where the runtime may round activations itself",
    )
    parser.add_argument(
        "--prompt", help="what the runtimes continue; default: the beginning of the text"
    )
    return parser


def _levels(given: str) -> list[int]:
    try:
        levels = [int(part) for part in given.split(",")]
    except ValueError:
        levels = [-1]
    if not set(levels) <= set(range(5)):
        raise argparse.ArgumentTypeError(f"{given} is no list of levels from 0 to 4 such as 1,4")
    return levels


def _cells(comparison: Comparison, explained: str = "") -> list[str]:
    return [
        f"{comparison.target.perplexity:.4f}",
        f"{comparison.reference.perplexity:.4f}",
        f"{comparison.relative_difference:+.2e}",
        f"{comparison.kl:.1e}{explained}",
        f"{comparison.same_top:.2%}",
    ]


def _roundings(counts: dict[str, int]) -> str:
    wrong = sum(count > 0 for count in counts.values())
    return f", {wrong} of {len(counts)} roundings differ" if counts else ""


def _rows(proof: "Proof") -> Iterator[list[str]]:
    yield [
        proof.file,
        proof.runtime,
        differing(proof.compared),
        f"{proof.logit_difference:.1e} ({proof.graph.noise.largest:.1e})"
        + _roundings(proof.roundings),
        *_cells(proof.comparison, f" ({proof.execution.simulated.kl:.1e})"),
        " ".join(f"{k} {'pass' if ok else 'FAIL'}" for k, ok in proof.verdicts.items()),
    ]
    for level, comparison in proof.at_levels.items():
        yield ["", f"accuracy level {level}", "", "", *_cells(comparison), "measured"]


def _sample(path: str, prompt: str, context: int, out: command.Output) -> str | None:
    """What the target writes after the prompt; None, with a warning, where it cannot."""
    from lrqat.runtimes.targets import continuation

    try:
        text = continuation(path, prompt, _SAMPLE_TOKENS, context=context)
    except UserError as error:
        out.warn(f"no sample from {path}: {error}")
        return None
    out.say(f"{path} continues {prompt!r} with {text!r}")
    return text


def _layers(args: argparse.Namespace, text: str, out: command.Output) -> "list[LayerTrace]":
    """The layers of every file, shown, if they were asked for."""
    if args.layers is None:
        return []
    from lrqat.runtimes.layer_trace import trace_layers

    traces = trace_layers(
        args.checkpoint,
        args.files,
        text,
        float32=args.layers == "float32",
        converter=args.converter,
    )
    for trace in traces:
        how = ", in float32" if trace.float32 else ""
        out.say(f"hidden states of {trace.file} in {trace.runtime}{how}, against PyTorch's")
        if trace.differences:
            rows = [[d.place, f"{d.largest:.1e}", f"{d.relative:.1e}"] for d in trace.differences]
            out.table("", ["after", "max |difference|", "relative"], rows)
        out.say(trace.verdict)
    return traces


def _show(out: command.Output, proofs: "list[Proof]", text: str) -> None:
    """The table, and what every failure has found."""
    columns = ["file", "runtime", "L0 mismatches", "L1 max |d logit| (noise)", "perplexity"]
    columns += ["reference", "difference", "KL (explained)", "same top", "verdict"]
    out.table(f"parity on {text}", columns, [row for proof in proofs for row in _rows(proof)])
    for proof in proofs:
        for line in worst(proof.compared):
            out.say(f"{proof.file}: L0: {line}")
        for failure in proof.failures:
            out.warn(f"{proof.file}: {failure}")


def _keep(checkpoint: Path, proofs: "list[Proof]", text: str, out: command.Output) -> None:
    """Record the verdicts in the checkpoint's folder, where a model card finds them."""
    for proof in proofs:
        compared = proof.comparison
        found = {
            "runtime": proof.runtime,
            "verdicts": proof.verdicts,
            "perplexity": compared.target.perplexity,
            "reference_perplexity": compared.reference.perplexity,
            "kl": compared.kl,
            "same_top": compared.same_top,
            "tokens": compared.target.tokens,
            "text": text,
        }
        command.keep_measurement(Path(proof.file), PARITY, found, out, home=checkpoint)


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    out = command.Output(args.json)
    command.accept_changes(args, args.checkpoint, out)
    text = EvaluationText.read(args.data)
    from lrqat.runtimes.parity import prove

    proofs = prove(
        args.checkpoint,
        args.files,
        text.text,
        context=args.context,
        limit=args.windows,
        kl_base=args.kl_divergence_base,
        converter=args.converter,
        accuracy_levels=args.accuracy_levels,
        progress=lambda what: lambda windows: tqdm(windows, desc=what, unit="window"),
    )
    _show(out, proofs, text.name)
    _keep(Path(args.checkpoint), proofs, text.name, out)
    traces = _layers(args, text.text, out)
    prompt = text.text[:_PROMPT_CHARACTERS] if args.prompt is None else args.prompt
    samples = [_sample(path, prompt, args.context, out) for path in (args.checkpoint, *args.files)]
    if all(proof.passed for proof in proofs):
        out.next(after_proof(args.files[0]))
    recorded = manifest.read(Path(args.checkpoint)).get("reference")
    out.result(
        {
            "files": [
                proof.to_json() | {"sample": sample}
                for proof, sample in zip(proofs, samples[1:], strict=True)
            ],
            "layers": [trace.to_json() for trace in traces],
            "sample": {"prompt": prompt, "reference": samples[0]},
            "recorded_reference": recorded,
            "passed": all(proof.passed for proof in proofs),
        }
    )
    return command.OK if all(proof.passed for proof in proofs) else command.FAILED
