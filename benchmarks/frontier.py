"""KL against bytes on a real model, in llama.cpp: our allotment beside llama-quantize's recipes.

    LIBLLAMA=libllama.so python -m benchmarks.frontier MODEL --data train.txt \
        --eval-data valid.txt --windows 40 --output runs/frontier

Everything is round-to-nearest: nothing is trained. All KL are between a GGUF file and the
unquantized one, both run by llama.cpp, by llama-perplexity's rule: ours as `lrqat train --method
rtn` and `lrqat export` write them, llama-quantize's with an importance matrix of the same text, and
any more files that are given, such as AutoRound's (benchmarks/autoround.py). A file that is there
already is not made again. Writes frontier.json and frontier.png.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import gguf
import numpy as np

from benchmarks.llama_quantize import quantize_file
from exporters.gguf import plan as plan_file
from exporters.gguf import write as write_file
from lrqat.checkpoint.reader import Checkpoint
from lrqat.cli.gguf_size import gguf_bytes
from lrqat.demo.baseline import write_unquantized
from lrqat.evaluation.perplexity import Comparison, Windows, compare_all
from lrqat.evaluation.text import EvaluationText
from lrqat.init import importance
from lrqat.init.imatrix_file import llama_cpp_names
from lrqat.models import hub
from lrqat.progress import tqdm
from lrqat.recipes.recipe_file import write_recipe
from lrqat.runtimes.llama_cpp.runtime import LlamaCpp
from lrqat.training.config import TrainConfig
from lrqat.training.planner import Planner
from lrqat.training.plots import plot_frontier
from lrqat.training.run import train

SIZES = range(60, 150, 10)
RECIPES = ("Q3_K_S", "Q3_K_M", "Q4_0", "IQ4_NL", "Q4_1", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
_OPEN = 8  # files at a time, since each has a context of its own


@dataclass
class Row:
    """A file and what was found of it.

    Attributes:
        name: "60 MB", "Q4_0" or the name of a file that was given.
        maker: "lrqat", "llama-quantize", "given".
        path: of the file.
        estimated: KL that the allotment promises, or None.
        MB: its size, 10^6 bytes.
        kl: nats a token.
        same_top: share of tokens with the same most likely next one.
        perplexity: of the text.
    """

    name: str
    maker: str
    path: str
    estimated: float | None = None
    MB: float = 0.0
    kl: float = 0.0
    same_top: float = 0.0
    perplexity: float = 0.0


def main() -> None:
    """Make the files that are missing, measure all, write a JSON and a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-data", required=True)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--megabytes", type=float, nargs="*", default=list(SIZES))
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--files", type=Path, nargs="*", default=[], help="more GGUF files")
    parser.add_argument("--output", type=Path, default=Path("runs/frontier"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    base = args.output / "base.gguf"
    rows = _make(args, base)
    tokens = hub.load_tokenizer(args.model)(EvaluationText.read(args.eval_data).text)["input_ids"]
    windows = Windows.cut(tokens, 512, limit=args.windows)
    for first in range(0, len(rows), _OPEN):
        _measure(base, rows[first : first + _OPEN], windows)
    found = json.dumps([asdict(row) for row in rows], indent=1)
    (args.output / "frontier.json").write_text(found)
    ours = sorted((row.MB, row.kl, True) for row in rows if row.maker == "lrqat")
    others = {row.name: (row.MB, row.kl) for row in rows if row.maker != "lrqat"}
    plot_frontier(ours, others, args.output / "frontier.png")


def _make(args: argparse.Namespace, base: Path) -> list[Row]:
    """All files."""
    planner = Planner.open(args.model, args.data, say=print, file_bytes=gguf_bytes)
    imatrix = args.output / "imatrix.gguf"
    write_imatrix(planner, imatrix)
    if not base.is_file():
        write_unquantized(planner.model, hub.load_tokenizer(args.model), base)
    rows = [_ours(planner, megabytes, args.output, imatrix) for megabytes in args.megabytes]
    for recipe in args.recipes:
        path = args.output / f"{recipe}.gguf"
        if not path.is_file():
            quantize_file(base, path, recipe, imatrix)
        rows.append(Row(recipe, "llama-quantize", str(path)))
    return rows + [Row(path.stem, "given", str(path)) for path in args.files]


def _ours(planner: Planner, megabytes: float, folder: Path, imatrix: Path) -> Row:
    """The file of a size, as the commands make it."""
    name = f"{megabytes:g}MB"
    allotment = planner.prices.allot(int(megabytes * 1e6))
    path, run = folder / f"{name}.gguf", folder / name
    if not path.is_file():
        recipe = folder / f"{name}.yaml"
        write_recipe(planner.recipe(allotment), recipe, overwrite=True)
        config = TrainConfig(
            model=planner.settings.model,
            data=planner.settings.data,
            output=str(run),
            recipe=str(recipe),
            method="rtn",
            imatrix=str(imatrix),
            eval_windows=1,
        )
        train(config, overwrite=True, say=print)
        write_file(plan_file(Checkpoint.open(run)), path)
    return Row(f"{megabytes:g} MB", "lrqat", str(path), allotment.estimate)


def _measure(base: Path, rows: Sequence[Row], windows: Windows) -> None:
    """Fill in what llama.cpp makes of some files, each open while the base is run once."""
    with ExitStack() as stack:
        paths = [base, *(Path(row.path) for row in rows)]
        opened = [stack.enter_context(LlamaCpp.open(path, windows.context)) for path in paths]
        reference, *targets = (file.logits for file in opened)
        found: list[Comparison] = compare_all(
            reference, targets, windows, lambda items: tqdm(items, desc="KL", unit="window")
        )
    for row, comparison in zip(rows, found, strict=True):
        row.MB = Path(row.path).stat().st_size / 1e6
        row.kl, row.same_top = comparison.kl, comparison.same_top
        row.perplexity = comparison.target.perplexity
        print(asdict(row), flush=True)


def write_imatrix(planner: Planner, path: Path) -> None:
    """What llama-imatrix writes, of the text that our sensitivities are measured on."""
    layers = [name for name, target in planner.surgery.quantized.items() if target.is_layer]
    squares = importance.collect(planner.model, layers, [planner.sequences])
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["calibration"])
    writer.add_uint32("imatrix.chunk_count", len(planner.sequences))
    writer.add_uint32("imatrix.chunk_size", planner.sequences.shape[1])
    tokens = float(planner.sequences.numel())
    for name, mean in squares.items():
        (own, *_) = llama_cpp_names(name)
        writer.add_tensor(f"{own}.weight.in_sum2", mean.numpy()[None] * np.float32(tokens))
        writer.add_tensor(f"{own}.weight.counts", np.array([[tokens]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
