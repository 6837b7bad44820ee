"""How near the original each method comes on each grid, beside llama.cpp's own: one command.

    python -m benchmarks.quality --model MODEL --data train.txt --eval-data valid.txt \
        --baseline --grids q4_0 q2_0 70MB --output runs/quality -- --steps 100

A grid may be a size, for which every weight gets the grid that costs least within it.

Every row is a run of `lrqat train` in a process of its own, so that its time and peak memory are
its own; a row that is there already is not made again. KL, same top and perplexity are measured in
PyTorch by llama-perplexity's rule, of the weights that the files mean, in float32; bytes are those
of GGUF files. Writes quality.json, quality.md and quality.png.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM

from benchmarks.autoround import TYPES, autoround
from exporters import gguf
from lrqat.checkpoint.reader import Checkpoint
from lrqat.demo.baseline import input_squares
from lrqat.evaluation.perplexity import Comparison, Windows, compare
from lrqat.evaluation.text import EvaluationText
from lrqat.grids.grid import GRIDS
from lrqat.models import hub
from lrqat.models.reference import load_reference, torch_logits
from lrqat.progress import tqdm
from lrqat.runtimes.llama_cpp.quantize_rows import quantize_rows
from lrqat.runtimes.llama_cpp.runtime import dequantize_row

# What a row is called -> what it is in options of `lrqat train`.
METHODS = {
    "rtn": ["--method", "rtn"],
    "scales": ["--method", "scales", "--stages", "model"],
    "lr-qat, model": ["--stages", "model"],
    "lr-qat, blocks": ["--stages", "blocks"],
    "lr-qat, blocks,model": ["--stages", "blocks,model"],
    "full": ["--method", "full", "--stages", "model"],
}
_COLUMNS = ("grid", "method", "MB", "perplexity", "KL", "99 %", "same top", "minutes", "GiB")


def main() -> None:
    """Make what is missing, and write the table and the picture of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-data", required=True)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--grids", nargs="*", default=["q4_0", "q2_0"])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument(
        "--baseline",
        action="store_true",
        help="and what llama.cpp's own quantizer makes of the same types",
    )
    parser.add_argument(
        "--autoround",
        type=Path,
        metavar="PYTHON",
        help="and AutoRound's files, by the interpreter that has it (benchmarks/autoround.py)",
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("more", nargs="*", help="options of `lrqat train`, after --")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    base = _Base(args.model, args.eval_data, args.windows)
    jobs: dict[str, Callable[[], dict[str, Any]]] = {}
    for grid in args.grids:
        for method in args.methods:
            jobs[f"{grid}-{method}"] = partial(_ours, args, base, grid, method)
        if args.baseline:
            jobs[f"{grid}-llama.cpp"] = partial(_theirs, args, base, grid)
        if args.autoround and grid in TYPES:
            jobs[f"{grid}-AutoRound"] = partial(_autoround, args, base, grid)
    rows = [_cached(args, name, make) for name, make in jobs.items()]
    _write(args.output, rows)


class _Base:
    """The original, and the text that everything is compared with it on."""

    def __init__(self, model: str, data: str, windows: int) -> None:
        self._model = hub.load_model(model, dtype=torch.float32)
        tokens = hub.load_tokenizer(model)(EvaluationText.read(data).text)["input_ids"]
        self._windows = Windows.cut(tokens, 512, limit=windows)

    def score(self, model: Any) -> dict[str, float]:
        """KL and the like of a model in float32."""
        found: Comparison = compare(
            torch_logits(self._model),
            torch_logits(model),
            self._windows,
            lambda items: tqdm(items, desc="KL", unit="window"),
        )
        return {
            "perplexity": found.target.perplexity,
            "KL": found.kl,
            "99 %": float(np.quantile(found.divergences, 0.99)),
            "same top": found.same_top,
        }


def _file_name(name: str) -> str:
    return name.replace(", ", "-").replace(",", "-")


def _cached(args: argparse.Namespace, name: str, make: Any) -> dict[str, Any]:
    path = args.output / f"{_file_name(name)}.json"
    if not path.is_file():
        path.write_text(json.dumps(make(), indent=1))
    row: dict[str, Any] = json.loads(path.read_text())
    print(row, flush=True)
    return row


def _ours(args: argparse.Namespace, base: _Base, grid: str, method: str) -> dict[str, Any]:
    folder = args.output / _file_name(f"{grid}-{method}")
    command = [sys.executable, "-m", "lrqat", "train", "--model", args.model, "--data", args.data]
    wanted = "--grid" if grid in GRIDS else "--target-size"
    command += ["--eval-data", args.eval_data, wanted, grid, "--output", str(folder)]
    start, peak = time.monotonic(), 0
    if not (folder / "lrqat.json").is_file():
        again = ["--resume", "auto"] if folder.exists() else []
        process = psutil.Popen([*command, *METHODS[method], *args.more, *again])
        while process.poll() is None:
            try:
                peak = max(peak, process.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.2)
        if process.wait() != 0:
            raise SystemExit(f"{folder}: training failed")
    seconds = time.monotonic() - start
    checkpoint = Checkpoint.open(folder)
    path = folder / gguf.default_name(checkpoint)
    if not path.is_file():
        gguf.write(gguf.plan(checkpoint), path)
    return {
        "grid": grid, "method": method, "MB": path.stat().st_size / 1e6,
        **base.score(load_reference(checkpoint)),
        "minutes": seconds / 60, "GiB": peak / 2**30,
    }  # fmt: skip


def _theirs(args: argparse.Namespace, base: _Base, grid: str) -> dict[str, Any]:
    """The types of our file, rounded by llama.cpp's own code with an importance matrix."""
    folder = args.output / _file_name(f"{grid}-{args.methods[0]}")
    checkpoint, start = Checkpoint.open(folder), time.monotonic()
    model = hub.load_model(args.model, dtype=torch.float32)
    squares = input_squares(model, hub.load_tokenizer(args.model), Path(args.data))
    for name in tqdm(checkpoint.quantized_names, desc="llama.cpp rounds", unit="weight"):
        weight = model.get_submodule(name).weight.data
        kind = checkpoint.grid(name).name.removesuffix("-sym")
        made = quantize_rows(kind, weight.numpy(), squares.get(name)).tobytes()
        weight.copy_(torch.from_numpy(dequantize_row(kind, made, weight.numel())).view_as(weight))
    seconds = time.monotonic() - start
    return {
        "grid": grid, "method": "llama.cpp, imatrix",
        "MB": (folder / gguf.default_name(checkpoint)).stat().st_size / 1e6,
        **base.score(model), "minutes": seconds / 60, "GiB": None,
    }  # fmt: skip


def _autoround(args: argparse.Namespace, base: _Base, grid: str) -> dict[str, Any]:
    """AutoRound's file of the type, read by transformers."""
    start = time.monotonic()
    folder = args.output / f"{grid}-AutoRound"
    path = autoround(args.autoround, args.model, Path(args.data), grid, folder)
    minutes = (time.monotonic() - start) / 60
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    return {
        "grid": grid, "method": "AutoRound", "MB": path.stat().st_size / 1e6,
        **base.score(model.eval()), "minutes": minutes, "GiB": None,
    }  # fmt: skip


def _write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "quality.json").write_text(json.dumps(rows, indent=1))
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    lines += ["| " + " | ".join(_cell(row[name]) for name in _COLUMNS) + " |" for row in rows]
    (folder / "quality.md").write_text("\n".join(lines) + "\n")
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    for axes, across in zip(figure.subplots(1, 2), ("MB", "minutes"), strict=True):
        for method in dict.fromkeys(row["method"] for row in rows):
            own = [row for row in rows if row["method"] == method]
            own.sort(key=lambda row: row[across])
            axes.plot([r[across] for r in own], [r["KL"] for r in own], "o-", label=method)
        axes.set(xlabel=across, ylabel="KL to the original (nats a token)", yscale="log")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(folder / "quality.png", dpi=120, metadata={"Software": None})


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str("" if value is None else value)


if __name__ == "__main__":
    main()
