"""What a training step costs, compared with full fine-tuning and plain LoRA; what an export costs.

`step` times a training step; `memory` counts its peak bytes. The model is a stack of Llama decoder
layers with random weights, made on the spot. `export` times the export to GGUF of a random fused
checkpoint in the shape of a real model, next to llama.cpp's own tools if they are given.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tools import command
from tools.random_model import SHAPES

_DTYPES = ("float32", "bfloat16")
_GRIDS = "q4_0,q3_k,q2_k,int4-channel"


def build_parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__ or "")
    parser.add_argument("what", choices=("step", "memory", "export"), help="what to measure")
    parser.add_argument("--width", type=int, default=1024, help="width of the model")
    parser.add_argument("--layers", type=int, default=2, help="decoder layers")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens a step")
    parser.add_argument("--rank", type=int, default=32, help="rank of A and B, and of plain LoRA")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="of the computation")
    parser.add_argument("--grids", default=_GRIDS, help="grids, with commas between them")
    parser.add_argument("--rounds", type=int, default=10, help="steps of each that are timed")
    group = parser.add_argument_group("export")
    group.add_argument("--like", choices=SHAPES, default="llama-3.2-1b", help="whose shape")
    group.add_argument("--folder", type=Path, help="where files go for a while; default: temporary")
    group.add_argument("--tokenizer", type=Path, help="folder of a tokenizer; default: a tiny one")
    group.add_argument("--llama-cpp", type=Path, help="llama.cpp's source tree, to compare with")
    group.add_argument("--llama-quantize", type=Path, help="its llama-quantize")
    return parser


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"


def _spread(quartiles: tuple[float, float, float]) -> str:
    lower, median, upper = quartiles
    return f"{median:.3f} ({lower:.3f} to {upper:.3f})"


def _show_times(out: command.Output, title: str, results: dict[str, Any]) -> None:
    rows = [
        (name, f"{t.wall:.3f}", f"{t.cpu:.3f}", _spread(t.ratio), _spread(t.cpu_ratio))
        for name, t in results.items()
    ]
    columns = ("contender", "seconds", "CPU seconds", "ratio to full", "CPU ratio to full")
    out.table(f"{title}; medians (quartiles)", columns, rows)


def _show_memory(out: command.Output, title: str, results: dict[str, Any]) -> None:
    rows = [
        (name, _mib(m.total), _mib(m.activations), _mib(m.weights), f"{m.matrices:.2f}")
        for name, m in results.items()
    ]
    columns = ("contender", "MiB", "activations", "temporaries of weights", "in largest matrices")
    out.table(f"{title}; beyond parameters, gradients and optimiser", columns, rows)


def _export(args: argparse.Namespace, out: command.Output) -> int:
    from transformers import LlamaConfig

    from exporters.measure import measure_exports
    from lrqat.random_fused import write_random_fused

    with tempfile.TemporaryDirectory(prefix="lrqat-bench-", dir=args.folder) as name:
        folder = Path(name)
        config = LlamaConfig(**SHAPES[args.like])
        weights = write_random_fused(config, folder / "fused", tokenizer=args.tokenizer)
        costs = measure_exports(folder / "fused", folder, args.llama_cpp, args.llama_quantize)
    rows = [
        (
            name, f"{cost.seconds:.1f}", f"{cost.cpu_seconds:.1f}",
            _mib(cost.peak_bytes) if cost.peak_bytes else "unknown", f"{cost.bytes:,}",
        )
        for name, cost in costs.items()
    ]  # fmt: skip
    columns = ("contender", "seconds", "CPU seconds", "peak MiB", "bytes")
    out.table(f"export to GGUF, {args.like}, {weights:,} weights", columns, rows)
    ours = costs["lrqat"]
    upstream = [cost for name, cost in costs.items() if name != "lrqat"]
    ratios = {
        what: sum(getattr(cost, what) for cost in upstream) / getattr(ours, what)
        for what in ("seconds", "cpu_seconds")
        if upstream
    }
    if ratios:
        out.say(
            f"convert and quantize take {ratios['seconds']:.1f} times as long as lrqat, and "
            f"{ratios['cpu_seconds']:.1f} times the CPU"
        )
    results = {name: cost.to_json() for name, cost in costs.items()}
    out.result({"like": args.like, "weights": weights, "results": results, "ratios": ratios})
    return command.OK


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    out = command.Output(args.json)
    if args.what == "export":
        return _export(args, out)
    import torch

    from lrqat import bench

    stack = bench.Stack(args.width, args.layers, args.dtype, args.rank)
    names = [bench.LORA, *(name.strip() for name in args.grids.split(",") if name.strip())]
    threads = torch.get_num_threads()
    title = (
        f"{args.layers} layers, width {args.width}, {args.tokens} tokens, {args.dtype}, "
        f"{threads} threads"
    )
    results: dict[str, Any]
    if args.what == "step":
        results = bench.time_steps(
            stack,
            names,
            tokens=args.tokens,
            rounds=args.rounds,
            progress=lambda rounds: tqdm(rounds, desc="timing", unit="round"),
        )
        _show_times(out, title, results)
    else:
        results = bench.measure_memory(
            stack,
            names,
            tokens=args.tokens,
            progress=lambda rows: tqdm(rows, desc="measuring", unit="contender"),
        )
        _show_memory(out, title, results)
    asked = ("what", "width", "layers", "tokens", "rank", "dtype", "grids", "rounds")
    settings: dict[str, Any] = {name: getattr(args, name) for name in asked}
    settings |= {"threads": threads, "torch": torch.__version__}
    out.result({"settings": settings, "results": {n: r.to_json() for n, r in results.items()}})
    return command.OK


if __name__ == "__main__":
    command.run(main)
