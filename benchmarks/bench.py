"""Measure what things cost: a training step's time and memory, and a whole model on this machine.

`step` and `memory` compare grids with full fine-tuning and plain LoRA, on a stack of decoder
layers with random weights that is made on the spot. `model` loads a model folder weight by weight
and takes real training steps; its options are those of tools/train.py. `export` times the export to
GGUF of a random fused checkpoint, next to llama.cpp's own tools if they are given. `gguf` times the
exported file in llama.cpp, next to llama-quantize's, and `onnx` an exported folder in ONNX Runtime.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from benchmarks.random_model import SHAPES
from lrqat.cli import command, train

_DTYPES = ("float32", "bfloat16")
_GRIDS = "q4_0,q3_k,q2_k,int4-channel"


class Bench(NamedTuple):
    """One thing to measure.

    Attributes:
        summary: one line for `--help`.
        options: adds its options to a parser.
        run: (arguments, output) -> what `--json` prints under "results".
    """

    summary: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, command.Output], dict[str, Any]]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Each has its own options, --json among them: WHAT --help."
    )
    benches = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, bench in BENCHES.items():
        own = benches.add_parser(
            name,
            help=bench.summary,
            description=bench.summary,
            formatter_class=command.Formatter,
        )
        command.add_json_option(own)
        bench.options(own)
    return parser


def _stack_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", type=int, default=1024, help="width of the model")
    parser.add_argument("--layers", type=int, default=2, help="decoder layers")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens a step")
    parser.add_argument("--rank", type=int, default=32, help="rank of A and B, and of plain LoRA")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="of the computation")
    parser.add_argument("--grids", default=_GRIDS, help="grids, with commas between them")


def _step_options(parser: argparse.ArgumentParser) -> None:
    _stack_options(parser)
    parser.add_argument("--rounds", type=int, default=10, help="steps of each that are timed")


def _stack_of(args: argparse.Namespace) -> tuple[Any, list[str], str]:
    """The stack, its contenders, and a title."""
    import torch

    from benchmarks import training_step as bench

    stack = bench.Stack(args.width, args.layers, args.dtype, args.rank)
    names = [bench.LORA, *(name.strip() for name in args.grids.split(",") if name.strip())]
    title = (
        f"{args.layers} layers, width {args.width}, {args.tokens} tokens, {args.dtype}, "
        f"{torch.get_num_threads()} threads"
    )
    return stack, names, title


def _step(args: argparse.Namespace, out: command.Output) -> dict[str, Any]:
    from benchmarks import training_step as bench

    stack, names, title = _stack_of(args)
    results = bench.time_steps(
        stack,
        names,
        tokens=args.tokens,
        rounds=args.rounds,
        progress=lambda rounds: tqdm(rounds, desc="timing", unit="round"),
    )
    rows = [
        (name, f"{t.wall:.3f}", f"{t.cpu:.3f}", _spread(t.ratio), _spread(t.cpu_ratio))
        for name, t in results.items()
    ]
    columns = ("contender", "seconds", "CPU seconds", "ratio to full", "CPU ratio to full")
    out.table(f"{title}; medians (quartiles)", columns, rows)
    return {name: times.to_json() for name, times in results.items()}


def _spread(quartiles: tuple[float, float, float]) -> str:
    lower, median, upper = quartiles
    return f"{median:.3f} ({lower:.3f} to {upper:.3f})"


def _memory(args: argparse.Namespace, out: command.Output) -> dict[str, Any]:
    from benchmarks import training_step as bench

    stack, names, title = _stack_of(args)
    results = bench.measure_memory(
        stack,
        names,
        tokens=args.tokens,
        progress=lambda rows: tqdm(rows, desc="measuring", unit="contender"),
    )
    rows = [
        (name, _mib(m.total), _mib(m.activations), _mib(m.weights), f"{m.matrices:.2f}")
        for name, m in results.items()
    ]
    columns = ("contender", "MiB", "activations", "temporaries of weights", "in largest matrices")
    out.table(f"{title}; beyond parameters, gradients and optimiser", columns, rows)
    return {name: memory.to_json() for name, memory in results.items()}


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="model folder, see tools/random_model.py")
    train.add_settings(parser)
    # Finding ranges takes long on a large model and changes neither time nor memory of a step.
    parser.set_defaults(range_init="minmax", steps=2, batch_size=1, sequence_length=1024)


def _model(args: argparse.Namespace, out: command.Output) -> dict[str, Any]:
    from benchmarks.whole_model import measure_model

    config = train.config_from(args, data="", output="", streamed=True)
    parts = measure_model(config, steps=config.steps, say=out.say)
    return {name: part.to_json() for name, part in parts.items()}


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--like", choices=SHAPES, default="llama-3.2-1b", help="whose shape")
    parser.add_argument(
        "--folder", type=Path, help="where files go for a while; default: a temporary folder"
    )
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer; default: a tiny one")
    parser.add_argument("--llama-cpp", type=Path, help="llama.cpp's source tree, to compare with")
    parser.add_argument("--llama-quantize", type=Path, help="its llama-quantize")


def _export(args: argparse.Namespace, out: command.Output) -> dict[str, Any]:
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
            _mib(cost.peak_bytes) if cost.peak_bytes else "unknown", f"{cost.bytes:,}",
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


def _gguf_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--llama-quantize", type=Path, required=True, help="llama.cpp's program")
    _small_model_options(parser, width=2048, layers=2, prompt=64, rounds=100, grid="q4_0")


def _gguf(args: argparse.Namespace, out: command.Output) -> dict[str, Any]:
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
            (form, f"{sizes[form]:,}", f"{t.wall * 1000:.2f}", _spread(t.ratio),
             _spread(t.cpu_ratio), "{:.3f} to {:.3f}".format(*t.cpu_ratio_interval))
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


def _onnx_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accuracy-level", type=int, default=1, choices=(1, 4),
        help="ONNX Runtime's: 1 computes in float32, 4 rounds activations to 8 bits",
    )  # fmt: skip
    _small_model_options(parser, width=1024, layers=4, prompt=128, rounds=15, grid="int4-g32")


def _bar(what: str) -> Callable[[Any], Any]:
    return lambda rounds: tqdm(rounds, desc=what, unit="round")


def _onnx(args: argparse.Namespace, out: command.Output) -> dict[str, Any]:
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
                (form, f"{t.wall * 1000:.1f}", f"{t.cpu * 1000:.1f}", _spread(t.ratio),
                 _spread(t.cpu_ratio))
                for form, t in speeds.items()
            ]  # fmt: skip
            columns = ("form", "ms", "CPU ms", "ratio to qdq", "CPU ratio to qdq")
            out.table(f"{what}, {tokens} tokens after {past}; medians (quartiles)", columns, rows)
            found[what] = {form: times.to_json() for form, times in speeds.items()}
    return found


BENCHES = {
    "step": Bench("time of a training step", _step_options, _step),
    "memory": Bench("peak memory of a training step", _stack_options, _memory),
    "model": Bench("memory and time of a whole model", _model_options, _model),
    "export": Bench("time and memory of an export to GGUF", _export_options, _export),
    "gguf": Bench("speed of a GGUF file beside llama-quantize's", _gguf_options, _gguf),
    "onnx": Bench("speed of an exported folder in ONNX Runtime", _onnx_options, _onnx),
}


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    out = command.Output(args.json)
    results = BENCHES[args.what].run(args, out)
    import torch

    given = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    settings = {**given, "threads": torch.get_num_threads(), "torch": torch.__version__}
    del settings["json"]
    out.result({"settings": settings, "results": results})
    return command.OK
