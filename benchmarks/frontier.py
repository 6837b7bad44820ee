"""KL against bytes on a real model: our allotment beside llama-quantize's recipes.

    LIBLLAMA=libllama.so python benchmarks/frontier.py MODEL --data train.txt --eval-data valid.txt

Everything is round-to-nearest: nothing is trained. All KL are measured in PyTorch, by
llama-perplexity's rule, between the model and the weights that a file means: ours as `lrqat plan`
rounds them, llama-quantize's as transformers reads them from its files, made with an importance
matrix of the same text. Bytes are those of whole GGUF files.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.llama_quantize import quantize_file
from lrqat.budget.rounding import all_rounded
from lrqat.cli.gguf_size import gguf_bytes
from lrqat.demo.baseline import write_unquantized
from lrqat.evaluation.perplexity import Windows
from lrqat.evaluation.text import EvaluationText
from lrqat.grids.grid import find_grid
from lrqat.init import importance
from lrqat.init.imatrix_file import llama_cpp_names
from lrqat.models import hub
from lrqat.progress import tqdm
from lrqat.training.planner import Planner
from lrqat.training.plots import plot_frontier

SIZES = range(60, 150, 10)
RECIPES = ("Q3_K_S", "Q3_K_M", "Q4_0", "IQ4_NL", "Q4_1", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")


def main() -> None:
    """Measure, print a line for each file, and write a JSON and a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-data", required=True)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--megabytes", type=float, nargs="*", default=list(SIZES))
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--output", type=Path, default=Path("frontier.json"))
    args = parser.parse_args()
    planner = Planner.open(args.model, args.data, say=print, file_bytes=gguf_bytes)
    tokenizer = hub.load_tokenizer(args.model)
    tokens = tokenizer(EvaluationText.read(args.eval_data).text)["input_ids"]
    windows = Windows.cut(tokens, 512, limit=args.windows)
    kl_of = _kl_to(planner.model, windows)
    found = {
        "ours": [_ours(planner, size, kl_of) for size in args.megabytes],
        "llama-quantize": _baselines(planner, tokenizer, args.model, args.recipes, kl_of),
    }
    args.output.write_text(json.dumps(found, indent=1))
    plot_frontier(
        [(row["MB"], row["kl"], True) for row in found["ours"]],
        {row["recipe"]: (row["MB"], row["kl"]) for row in found["llama-quantize"]},
        args.output.with_suffix(".png"),
    )


@torch.no_grad()
def _kl_to(model: Any, windows: Windows) -> Callable[[Any], float]:
    """A function from a model to its KL to `model` on the windows, in nats a token."""

    def log_probabilities(of: Any, window: np.ndarray) -> Tensor:
        logits: Tensor = of(torch.from_numpy(window)[None]).logits[0, windows.scored]
        return logits.float().log_softmax(-1)

    base = [log_probabilities(model, window) for window in windows.tokens]

    @torch.no_grad()
    def kl(of: Any) -> float:
        parts = []
        for window, p in zip(tqdm(windows.tokens, desc="KL", unit="window"), base, strict=True):
            parts.append((p.exp() * (p - log_probabilities(of, window))).sum(-1))
        return float(torch.cat(parts).mean())

    return kl


def _ours(planner: Planner, megabytes: float, kl_of: Callable[[Any], float]) -> dict[str, Any]:
    prices = planner.prices
    chosen = prices.measured(planner.model, prices.allot(int(megabytes * 1e6)), planner.sequences)
    grids = {name: find_grid(grid) for name, grid in chosen.grids.items()}
    with all_rounded(planner.model, prices.targets, grids, prices.importance):
        kl = kl_of(planner.model)
    row = {"asked": megabytes, "MB": chosen.nbytes / 1e6, "kl": kl,
           "estimated": chosen.estimate, "measured": chosen.kl}  # fmt: skip
    print(row, flush=True)
    return row


def _baselines(
    planner: Planner, tokenizer: Any, folder: str, recipes: list[str], kl_of: Callable[[Any], float]
) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        source, imatrix = Path(scratch, "source.gguf"), Path(scratch, "imatrix.gguf")
        write_unquantized(hub.load_model(folder, dtype=torch.float32), tokenizer, source)
        write_imatrix(planner, imatrix)
        for recipe in recipes:
            target = Path(scratch, f"{recipe}.gguf")
            nbytes = quantize_file(source, target, recipe, imatrix)
            theirs = AutoModelForCausalLM.from_pretrained(
                scratch, gguf_file=target.name, dtype=torch.float32
            )
            rows.append({"recipe": recipe, "MB": nbytes / 1e6, "kl": kl_of(theirs.eval())})
            print(rows[-1], flush=True)
            target.unlink()
    return rows


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
