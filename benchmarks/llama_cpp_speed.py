"""Speed of an exported GGUF file in llama.cpp, next to llama-quantize's file of the same types.

Where a file's tensors come to lie in memory moves the time of a token by 5 to 10 %, more than any
difference between the files, and pages that the system keeps of a file stay where they are. So
every round copies and loads both anew, in turns and in changing order, and what counts is the
median of many rounds.
"""

import shutil
import time
from pathlib import Path

from benchmarks.timing import Progress, Times, check_rounds, summarise
from exporters import gguf
from exporters.gguf.file.header import read_header
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import UserError
from lrqat.runtimes.llama_cpp.llama_quantize import quantize
from lrqat.runtimes.llama_cpp.runtime import LlamaCpp

OURS, THEIRS = "lrqat", "llama-quantize"
_DECODED = 16
_EMBEDDING = "token_embd.weight"


def write_forms(checkpoint: Path, folder: Path, tool: Path) -> dict[str, Path]:
    """Export `checkpoint` into `folder`, and let llama-quantize make a file of the same types.

    It starts from the same weights as float32, and derives scales of its own.

    Args:
        checkpoint: of one grid.
        folder: where the files go.
        tool: llama-quantize.

    Raises:
        ExportRefusedError: the checkpoint has no exact form in GGUF.
        UserError: llama-quantize fails, or there is none.
    """
    opened = Checkpoint.open(checkpoint)
    forms = {name: folder / f"{name}.gguf" for name in (OURS, THEIRS)}
    twin = folder / "twin.gguf"
    plan = gguf.plan(opened)
    gguf.write(plan, forms[OURS])
    gguf.write(gguf.plan(opened, gguf.Options(type="f32")), twin)
    kinds = {tensor.block.NAME for tensor in plan.tensors if tensor.source.quantized}
    if len(kinds) != 1:
        raise UserError(f"the projections are of the types {sorted(kinds)}; give a model of one")
    embedding = read_header(forms[OURS]).tensors[_EMBEDDING].type_name.lower()
    quantize(tool, twin, forms[THEIRS], kinds.pop(), embedding)
    twin.unlink()
    return forms


def measure(
    files: dict[str, Path],
    *,
    prompt: int,
    rounds: int,
    progress: Progress = lambda items: items,
) -> dict[str, dict[str, Times]]:
    """Times of "prefill", the prompt, and "decode", a token after it, of both files; one thread.

    Args:
        files: from `write_forms`.
        prompt: tokens.
        rounds: how many times both are loaded; one more goes before them.
        progress: wraps the iterable of rounds.

    Raises:
        UserError: fewer than two rounds.
    """
    check_rounds(rounds)
    spent: dict[str, dict[str, list[tuple[float, float]]]] = {
        what: {name: [] for name in files} for what in ("prefill", "decode")
    }
    for path in files.values():
        _time_once(path, prompt)
    for number in progress(range(rounds)):
        for name in sorted(files, reverse=number % 2 == 1):
            for what, taken in zip(spent, _time_once(files[name], prompt), strict=True):
                spent[what][name].append(taken)
    return {what: summarise(times, THEIRS) for what, times in spent.items()}


def _time_once(path: Path, prompt: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Seconds (wall, CPU) of a prompt and of one token, after copying and loading `path`."""
    copy = path.with_suffix(".copy.gguf")
    shutil.copyfile(path, copy)
    with LlamaCpp.open(copy, n_ctx=prompt + _DECODED) as llama:
        tokens = [token % llama.n_vocab for token in range(prompt)]
        llama.feed(tokens[:1], 0)  # touches every weight, so that no page is missing later
        begin = time.perf_counter(), time.process_time()
        llama.feed(tokens, 0)
        middle = time.perf_counter(), time.process_time()
        for position in range(prompt, prompt + _DECODED):
            llama.feed(tokens[:1], position)
        end = time.perf_counter(), time.process_time()
    copy.unlink()
    return (
        (middle[0] - begin[0], middle[1] - begin[1]),
        ((end[0] - middle[0]) / _DECODED, (end[1] - middle[1]) / _DECODED),
    )
