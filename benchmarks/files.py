"""The benches of exported files: what an export costs, and how fast a file is in its runtime."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.random_model import SHAPES
from benchmarks.timing import mib, spread
from lrqat.cli import command
from lrqat.progress import tqdm


def export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--like", choices=SHAPES, default="llama-3.2-1b", help="whose shape")
    parser.add_argument(
        "--folder", type=Path, help="where files go for a while; default: a temporary folder"
    )
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer; default: a tiny one")
    parser.add_argument("--llama-cpp", type=Path, help="llama.cpp's source tree, to compare with")
    parser.add_argument("--llama-quantize", type=Path, help="its llama-quantize")


def export(args: argparse.Namespace, out: command.Output) -> dict[str, Any]:
    from transformers import LlamaConfig

    from benchmarks.export_cost import measure_exports
    from benchmarks.random_fused import write_random_fused

    with tempfile.TemporaryDirectory(prefix="lrqat-bench-", dir=args.folder) as name:
        folder = Path(name)
        config = LlamaConfig(**SHAPES[args.like])
        weights = write_random_fused(config, folder / "fused", tokenizer=args.tokenizer)
        costs = measure_exports(folder / "fused", folder, args.llama_cpp, args.llama_quantize)
    rows = [
        (
            name, f"{cost.seconds:.1f}", f"{cost.cpu_seconds:.1f}",
            mib(cost.peak_bytes) if cost.peak_bytes else "unknown", f"{cost.bytes:,}",
        )
        for name, cost in costs.items()
    ]  # fmt: skip
    columns = ("contender", "seconds", "CPU seconds", "peak MiB", "bytes")
    out.table(f"export to GGUF, {args.like}, {weights:,} weights", columns, rows)
    upstream = [cost for name, cost in costs.items() if name != "lrqat"]
    ratios = {
        what: sum(getattr(cost, what) for cost in upstream) / getattr(costs["lrqat"], what)
        for what in ("seconds", "cpu_seconds")
        if upstream
    }
    if ratios:
        out.say(
            f"convert and quantize take {ratios['seconds']:.1f} times as long as lrqat, and "
            f"{ratios['cpu_seconds']:.1f} times the CPU"
        )
    found = {name: cost.to_json() for name, cost in costs.items()}
    return {"weights": weights, "costs": found, "ratios": ratios}


def _small_model_options(
    parser: argparse.ArgumentParser, width: int, layers: int, prompt: int, rounds: int, grid: str
) -> None:
    """Options of a random Llama, and of what is run with it; the arguments are the defaults."""
    for name, default, what in (
        ("--width", width, "width of the model"),
        ("--layers", layers, "decoder layers"),
        ("--vocabulary", 4096, "rows of the floating head"),
        ("--prompt", prompt, "tokens of a prompt, and of a cache"),
        ("--rounds", rounds, "turns of each that are timed"),
    ):
        parser.add_argument(name, type=int, default=default, help=what)
    parser.add_argument("--grid", default=grid, help="grid of the weights")


def gguf_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--llama-quantize", type=Path, required=True, help="llama.cpp's program")
    _small_model_options(parser, width=2048, layers=2, prompt=64, rounds=100, grid="q4_0")


def gguf(args: argparse.Namespace, out: command.Output) -> dict[str, Any]:
    from benchmarks.llama_cpp_speed import measure, write_forms
    from benchmarks.random_fused import write_random_fused

    with tempfile.TemporaryDirectory(prefix="lrqat-bench-") as name:
        write_random_fused(_small_llama(args), Path(name, "fused"), grid=args.grid)
        files = write_forms(Path(name, "fused"), Path(name), args.llama_quantize)
        sizes = {form: path.stat().st_size for form, path in files.items()}
        speeds = measure(
            files, prompt=args.prompt, rounds=args.rounds, progress=_bar("loading and running")
        )
    for what, times in speeds.items():
        rows = [
            (form, f"{sizes[form]:,}", f"{t.wall * 1000:.2f}", spread(t.ratio),
             spread(t.cpu_ratio), "{:.3f} to {:.3f}".format(*t.cpu_ratio_interval))
            for form, t in times.items()
        ]  # fmt: skip
        columns = ("file", "bytes", "ms", "ratio", "CPU ratio", "95 % of its median")
        out.table(f"{what} in llama.cpp; medians (quartiles)", columns, rows)
    found = {what: {n: t.to_json() for n, t in times.items()} for what, times in speeds.items()}
    return {"bytes": sizes, **found}


def _small_llama(args: argparse.Namespace) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=args.vocabulary, hidden_size=args.width, intermediate_size=args.width * 11 // 4,
        num_hidden_layers=args.layers, num_attention_heads=args.width // 64,
        num_key_value_heads=args.width // 128, max_position_embeddings=4096,
    )  # fmt: skip


def onnx_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accuracy-level", type=int, default=1, choices=(1, 4),
        help="ONNX Runtime's: 1 computes in float32, 4 rounds activations to 8 bits",
    )  # fmt: skip
    _small_model_options(parser, width=1024, layers=4, prompt=128, rounds=15, grid="int4-g32")


def _bar(what: str) -> Callable[[Any], Any]:
    return lambda rounds: tqdm(rounds, desc=what, unit="round")


def onnx(args: argparse.Namespace, out: command.Output) -> dict[str, Any]:
    from benchmarks.onnx_speed import measure, write_forms
    from benchmarks.random_fused import write_random_fused

    found = {}
    with tempfile.TemporaryDirectory(prefix="lrqat-bench-") as name:
        write_random_fused(_small_llama(args), Path(name, "fused"), grid=args.grid)
        contenders = write_forms(Path(name, "fused"), Path(name), args.accuracy_level)
        runs = (("decode", 1, args.prompt, 16), ("prefill", args.prompt, 0, 1))
        for what, tokens, past, repeat in runs:
            speeds = measure(
                contenders, tokens=tokens, past=past, rounds=args.rounds, repeat=repeat,
                progress=_bar(what),
            )  # fmt: skip
            rows = [
                (form, f"{t.wall * 1000:.1f}", f"{t.cpu * 1000:.1f}", spread(t.ratio),
                 spread(t.cpu_ratio))
                for form, t in speeds.items()
            ]  # fmt: skip
            columns = ("form", "ms", "CPU ms", "ratio to qdq", "CPU ratio to qdq")
            out.table(f"{what}, {tokens} tokens after {past}; medians (quartiles)", columns, rows)
            found[what] = {form: times.to_json() for form, times in speeds.items()}
    return found
