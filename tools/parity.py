"""Prove exported files against the checkpoint they came from: bytes, graph, runtime.

L0 compares the integers and scales in the file with the checkpoint's, bit for bit. L1 compares
logits of an F32 twin with PyTorch's. L2 compares perplexity and KL of the real file in the real
runtime with the fake-quant reference. Exit status 1 if anything fails.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from lrqat import manifest
from lrqat.text import EvaluationText
from tools import command


def build_parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__ or "")
    parser.add_argument("checkpoint", help="folder of the fused checkpoint")
    parser.add_argument("files", nargs="+", metavar="FILE", help=".gguf files and ONNX folders")
    command.add_text_options(parser)
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
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    out = command.Output(args.json)
    text = EvaluationText.read(args.data)
    from runtime_tests.parity import prove

    proofs = prove(
        args.checkpoint,
        args.files,
        text.text,
        context=args.context,
        limit=args.windows,
        kl_base=args.kl_divergence_base,
        converter=args.converter,
        progress=lambda what: lambda windows: tqdm(windows, desc=what, unit="window"),
    )
    rows = [
        [
            proof.file,
            proof.runtime,
            f"{sum(proof.mismatches.values())} of {proof.tensors} tensors",
            f"{proof.logit_difference:.1e}",
            f"{proof.comparison.target.perplexity:.4f}",
            f"{proof.comparison.reference.perplexity:.4f}",
            f"{proof.comparison.relative_difference:+.2e}",
            f"{proof.comparison.kl:.1e}",
            f"{proof.comparison.same_top:.2%}",
            " ".join(f"{k} {'pass' if ok else 'FAIL'}" for k, ok in proof.verdicts.items()),
        ]
        for proof in proofs
    ]
    columns = ["file", "runtime", "L0 mismatches", "L1 max |d logit|", "perplexity", "reference"]
    columns += ["difference", "KL", "same top", "verdict"]
    out.table(f"parity on {text.name}", columns, rows)
    for proof in proofs:
        if not proof.same_tokens:
            out.warn(f"{proof.file}: {proof.runtime} tokenises this text differently")
    recorded = manifest.read(Path(args.checkpoint)).get("reference")
    out.result(
        {
            "files": [proof.to_json() for proof in proofs],
            "recorded_reference": recorded,
            "passed": all(proof.passed for proof in proofs),
        }
    )
    return command.OK if all(proof.passed for proof in proofs) else command.FAILED


if __name__ == "__main__":
    command.run(main)
