"""Measure what things cost: a training step's time and memory, and a whole model on this machine.

`step` and `memory` compare grids with full fine-tuning and plain LoRA, on a stack of decoder
layers with random weights that is made on the spot. `model` loads a model folder weight by weight
and takes real training steps; its options are those of tools/train.py. `export` times the export to
GGUF of a random fused checkpoint, next to llama.cpp's own tools if they are given. `gguf` times the
exported file in llama.cpp, next to llama-quantize's, and `onnx` an exported folder in ONNX Runtime.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import files
from benchmarks.timing import mib, spread
from lrqat.cli import command, train_options
from lrqat.cli.parsing import Formatter
from lrqat.progress import tqdm

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
            formatter_class=Formatter,
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
        (name, f"{t.wall:.3f}", f"{t.cpu:.3f}", spread(t.ratio), spread(t.cpu_ratio))
        for name, t in results.items()
    ]
    columns = ("contender", "seconds", "CPU seconds", "ratio to full", "CPU ratio to full")
    out.table(f"{title}; medians (quartiles)", columns, rows)
    return {name: times.to_json() for name, times in results.items()}


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
        (name, mib(m.total), mib(m.activations), mib(m.weights), f"{m.matrices:.2f}")
        for name, m in results.items()
    ]
    columns = ("contender", "MiB", "activations", "temporaries of weights", "in largest matrices")
    out.table(f"{title}; beyond parameters, gradients and optimiser", columns, rows)
    return {name: memory.to_json() for name, memory in results.items()}


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="model folder, see tools/random_model.py")
    train_options.add_settings(parser)
    # Finding ranges takes long on a large model and changes neither time nor memory of a step.
    parser.set_defaults(range_init="minmax", steps=2, batch_size=1, sequence_length=1024)


def _model(args: argparse.Namespace, out: command.Output) -> dict[str, Any]:
    from benchmarks.whole_model import measure_model

    config = train_options.config_from(args, data="", output="", streamed=True)
    parts = measure_model(config, steps=config.steps, say=out.say)
    return {name: part.to_json() for name, part in parts.items()}


BENCHES = {
    "step": Bench("time of a training step", _step_options, _step),
    "memory": Bench("peak memory of a training step", _stack_options, _memory),
    "model": Bench("memory and time of a whole model", _model_options, _model),
    "export": Bench("time and memory of an export to GGUF", files.export_options, files.export),
    "gguf": Bench("speed of a GGUF file beside llama-quantize's", files.gguf_options, files.gguf),
    "onnx": Bench("speed of an exported folder in ONNX Runtime", files.onnx_options, files.onnx),
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
