"""The whole path on a machine with nothing on it: LR-QAT, two exports, and the proof.

The base model is SmolLM2-135M-Instruct from a Python package, or with --offline a small one made
from scratch. Its file comes to stand beside the one that llama.cpp's own quantizer makes, of the
same types and bytes. Steps whose result is there already are not done again.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.format import load_format
from lrqat.checkpoint.reader import Checkpoint
from lrqat.cli import command
from lrqat.evaluation.text import EvaluationText
from lrqat.training.config import TrainConfig

if TYPE_CHECKING:
    from lrqat.demo.bases import Base


def build_parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__ or "")
    parser.add_argument(
        "--output", help="folder of all it makes; default: runs/demo, or runs/demo-offline"
    )
    parser.add_argument("--grid", default="q4_0", help="grid of the projections")
    parser.add_argument("--block-steps", type=int, help="steps of each block")
    parser.add_argument("--steps", type=int, help="steps of the model as a whole")
    parser.add_argument("--windows", type=int, help="windows of held-out text that are scored")
    parser.add_argument(
        "--offline", action="store_true", help="a base model made from scratch, for tests"
    )
    parser.add_argument(
        "--base-steps", type=int, default=180, help="steps of the base model of --offline"
    )
    parser.add_argument("--overwrite", action="store_true", help="train again")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    out = command.Output(args.json)
    start = time.monotonic()
    folder = Path(args.output or ("runs/demo-offline" if args.offline else "runs/demo"))
    from lrqat.demo.bases import offline, smollm2

    out.say("1/5 the base model and its text")
    base = offline(folder, args.base_steps) if args.offline else smollm2(folder)
    if args.block_steps is not None:
        base.training["block_steps"] = args.block_steps
    steps, windows = args.steps or base.steps, args.windows or base.windows
    out.say(f"2/5 LR-QAT on the grid {args.grid}: block by block, then {steps} steps as a whole")
    fused = folder / f"fused-{args.grid}"
    _train(base, fused, args.grid, steps, windows, overwrite=args.overwrite, out=out)
    out.say("3/5 export to GGUF and ONNX")
    files = _export(fused)
    out.say("4/5 the proof: the files in llama.cpp and ONNX Runtime against PyTorch")
    passed = _prove(out, fused, files, base, windows)
    out.say(f"5/5 beside the file of llama.cpp's own quantizer: {base.question!r}")
    _compare(out, base, Path(files[0]), args.grid, windows)
    out.say(f"everything is in {folder} ({time.monotonic() - start:.0f} s)")
    return command.OK if passed else command.FAILED


def _train(
    base: "Base",
    fused: Path,
    grid: str,
    steps: int,
    windows: int,
    *,
    overwrite: bool,
    out: command.Output,
) -> None:
    """LR-QAT with the base model as its own teacher; a run that was stopped goes on."""
    from lrqat.training.run import train

    if (fused / "lrqat.json").is_file() and not overwrite:
        return
    config = TrainConfig(
        model=str(base.folder),
        data=str(base.train),
        eval_data=str(base.held_out),
        eval_windows=windows,
        output=str(fused),
        grid=grid,
        steps=steps,
        **base.training,
    )
    train(config, overwrite=overwrite, resume=None if overwrite else "auto", say=out.say)


def _export(fused: Path) -> list[str]:
    """Both exports; returns the paths."""
    checkpoint = Checkpoint.open(fused)
    paths = []
    for name in ("gguf", "onnx"):
        exporter = load_format(name)
        path = fused / exporter.default_name(checkpoint)
        exporter.write(exporter.plan(checkpoint, exporter.Options()), path, overwrite=True)
        paths.append(str(path))
    return paths


def _prove(out: command.Output, fused: Path, files: list[str], base: "Base", windows: int) -> bool:
    """Prove both files and print the table; returns whether everything holds."""
    from lrqat.runtimes.parity import prove

    text = EvaluationText.read(base.held_out).text
    proofs = prove(fused, files, text, context=base.training["context"], limit=windows)
    rows = [
        [
            Path(proof.file).relative_to(fused),
            f"{proof.comparison.reference.perplexity:.4f}",
            f"{proof.runtime}: {proof.comparison.target.perplexity:.4f}",
            f"{proof.comparison.relative_difference:+.1e}",
            *("pass" if ok else "FAIL" for ok in proof.verdicts.values()),
        ]
        for proof in proofs
    ]
    columns = ["file", "PyTorch", "runtime", "difference", "L0", "L1", "L2"]
    out.table("perplexity of the same weights", columns, rows)
    out.result({"files": [proof.to_json() for proof in proofs]})
    return all(proof.passed for proof in proofs)


def _compare(out: command.Output, base: "Base", ours: Path, grid: str, windows: int) -> None:
    """The table of base, baseline and ours, and what each answers."""
    from lrqat.demo.baseline import write_baseline
    from lrqat.demo.comparison import compare_files

    baseline = ours.with_name(f"llama.cpp-{grid}.gguf")
    write_baseline(ours, base.folder, base.train, baseline)
    files = {f"llama.cpp's {grid}": baseline, f"lrqat's {grid}": ours}
    rows = list(
        compare_files(
            base.folder,
            files,
            base.held_out,
            base.question,
            context=base.training["context"],
            windows=windows,
        )
    )
    cells = [
        [
            row.name,
            f"{row.bytes:,}",
            f"{row.perplexity:.2f}",
            "" if row.kl is None else f"{row.kl:.4f}",
            "" if row.same_top is None else f"{row.same_top:.1%}",
        ]
        for row in rows
    ]
    columns = ["", "bytes", "perplexity", "KL from the base", "same top token"]
    out.table(f"{base.name}, held-out text", columns, cells)
    for row in rows:
        out.say(f"{row.name}: {row.answer.strip()!r}")
    out.result({"rows": [asdict(row) for row in rows]})
