"""The whole path on a machine with nothing on it: base model, LR-QAT, two exports, the proof.

The base model is a small Llama trained from scratch on the source code of Python's standard
library, which every machine has. Nothing is downloaded. Steps whose result is there already are
not done again.
"""

import argparse
import math
import random
import shutil
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from exporters.format import load_format
from lrqat.checkpoint.reader import Checkpoint
from lrqat.cli import command
from lrqat.evaluation.text import EvaluationText
from lrqat.training.config import TrainConfig

_VOCABULARY = 2048
_CHARACTERS = 6_000_000
_PROMPT = "def main(argv):\n"


def build_parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__ or "")
    parser.add_argument("--output", default="runs/demo", help="folder for everything it makes")
    parser.add_argument("--base-steps", type=int, default=180, help="steps of the base model")
    parser.add_argument("--steps", type=int, default=120, help="steps of LR-QAT")
    parser.add_argument("--windows", type=int, default=40, help="windows of 256 tokens scored")
    parser.add_argument("--overwrite", action="store_true", help="do everything again")
    return parser


def corpus(folder: Path) -> tuple[Path, Path]:
    """Write training and held-out text from the standard library: (train.txt, held-out.txt)."""
    train, held_out = folder / "train.txt", folder / "held-out.txt"
    if train.is_file() and held_out.is_file():
        return train, held_out
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "site-packages", "idlelib", "lib2to3", "__pycache__"}
    paths = [p for p in sorted(root.rglob("*.py")) if not skipped & set(p.parts)]
    random.Random(0).shuffle(paths)  # so that the held-out files are like the others
    texts = [p.read_text(encoding="utf-8", errors="ignore") for p in paths]
    folder.mkdir(parents=True, exist_ok=True)
    held_out.write_text("\n".join(texts[::25])[: _CHARACTERS // 25], encoding="utf-8")
    rest = [text for i, text in enumerate(texts) if i % 25]
    train.write_text("\n".join(rest)[:_CHARACTERS], encoding="utf-8")
    return train, held_out


def make_base_model(folder: Path, text: Path, steps: int) -> Path:
    """Train tokenizer and model from scratch on `text`; returns the model's folder."""
    from lrqat.models.small_llama import make_tokenizer, make_untrained_model, train_base_model
    from lrqat.training.data.documents import pack

    base = folder / "base"
    if (base / "model.safetensors").is_file():
        return base
    content = text.read_text(encoding="utf-8")
    tokenizer = make_tokenizer(content.splitlines(keepends=True), vocabulary=_VOCABULARY)
    blocks = pack(iter([content]), tokenizer, length=256, needed_tokens=0)
    model = make_untrained_model(
        len(tokenizer), hidden=256, intermediate=768, layers=4, heads=8, kv_heads=4, seed=0
    )
    train_base_model(
        model, blocks, steps=steps, batch_size=16, learning_rate=3e-3, folder=folder / "trainer"
    )
    tokenizer.save_pretrained(base)
    # float16, as models are published. Last: its presence says that the folder is complete.
    model.half().save_pretrained(base)
    return base


def train_fused(
    base: Path, folder: Path, text: Path, held_out: Path, steps: int, say: Callable[[str], None]
) -> Path:
    """LR-QAT with the base model as its own teacher; returns the fused checkpoint."""
    from lrqat.training.run import train

    fused = folder / "fused"
    if (fused / "lrqat.json").is_file():
        return fused
    config = TrainConfig(
        model=str(base),
        data=str(text),
        eval_data=str(held_out),
        output=str(fused),
        grid="q4_0",
        steps=steps,
        teacher="self",
        context=256,
    )
    train(config, overwrite=True, say=say)
    return fused


def export_all(fused: Path) -> list[str]:
    """Both exports; returns the paths."""
    checkpoint = Checkpoint.open(fused)
    paths = []
    for name in ("gguf", "onnx"):
        exporter = load_format(name)
        path = fused / exporter.default_name(checkpoint)
        exporter.write(exporter.plan(checkpoint, exporter.Options()), path, overwrite=True)
        paths.append(str(path))
    return paths


def show_proof(
    out: command.Output, base: Path, fused: Path, files: list[str], held_out: Path, windows: int
) -> bool:
    """Prove both files and print the table; returns whether everything holds."""
    from lrqat.runtimes.parity import prove
    from lrqat.runtimes.targets import evaluate

    text = EvaluationText.read(held_out).text
    _, full = evaluate(str(base), text, context=256, limit=windows)
    proofs = prove(fused, files, text, context=256, limit=windows)
    checkpoint = Checkpoint.open(fused)
    names = checkpoint.quantized_names + checkpoint.floating_names
    weights = sum(math.prod(checkpoint.shape(name)) for name in names)
    rows = [
        [
            Path(proof.file).relative_to(fused),
            f"{proof.bytes:,}",
            f"{8 * proof.bytes / weights:.2f}",
            f"{full.perplexity:.4f}",
            f"{proof.comparison.reference.perplexity:.4f}",
            f"{proof.runtime}: {proof.comparison.target.perplexity:.4f}",
            f"{proof.comparison.relative_difference:+.1e}",
            *("pass" if ok else "FAIL" for ok in proof.verdicts.values()),
        ]
        for proof in proofs
    ]
    columns = ["file", "bytes", "bits/weight", "PyTorch fp32", "fake-quant", "runtime"]
    columns += ["difference", "L0", "L1", "L2"]
    out.table("perplexity on held-out files of the standard library", columns, rows)
    out.result({"files": [proof.to_json() for proof in proofs]})
    return all(proof.passed for proof in proofs)


def show_words(out: command.Output, files: list[str]) -> None:
    """A few generated words from each runtime."""
    from lrqat.runtimes.targets import continuation

    for name, file in zip(("llama.cpp", "onnxruntime-genai"), files, strict=True):
        text = _PROMPT + continuation(file, _PROMPT, 24, context=256)
        out.say(f"{name + ' writes:':<28} {text!r}")


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    out = command.Output(args.json)
    folder = Path(args.output)
    start = time.monotonic()
    if args.overwrite:
        for name in ("base", "trainer", "fused"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in ("train.txt", "held-out.txt"):
            (folder / name).unlink(missing_ok=True)
    text, held_out = corpus(folder)
    out.say(f"1/4 base model: {args.base_steps} steps from scratch on {text}")
    base = make_base_model(folder, text, args.base_steps)
    out.say(f"2/4 LR-QAT on the grid q4_0: {args.steps} steps, the base model as teacher")
    fused = train_fused(base, folder, text, held_out, args.steps, out.say)
    out.say("3/4 export to GGUF and ONNX")
    files = export_all(fused)
    out.say("4/4 the proof: the files in llama.cpp and ONNX Runtime against PyTorch")
    passed = show_proof(out, base, fused, files, held_out, args.windows)
    show_words(out, files)
    out.say(f"everything is in {folder} ({time.monotonic() - start:.0f} s)")
    return command.OK if passed else command.FAILED
