"""A fused checkpoint of random integers and scales in the shape of a real model.

For measuring what an export costs: it is written file by file, one file in memory at a time, and no
model is ever built. Its text is noise.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

import lrqat
from lrqat.atomic_files import explain_os_errors, refuse_existing, staged_folder, write_json
from lrqat.checkpoint import manifest
from lrqat.checkpoint.reader import PACKED, SHAPE
from lrqat.checkpoint.stored_scales import PARTS
from lrqat.errors import GridError
from lrqat.grids.grid import FloatScale, Grid
from lrqat.grids.packing import pack_grid
from lrqat.models import hub
from lrqat.models.fuse import git_commit
from lrqat.models.small_llama import make_tokenizer
from lrqat.models.standard_format import loads_with_transformers, quantization_config
from lrqat.models.surgery import SurgeryPlan, plan_surgery

_ROWS = 4096  # of a floating matrix that are made at a time
Tensors = dict[str, NDArray[Any]]


def write_random_fused(
    config: Any,
    folder: Path,
    *,
    grid: str = "q4_0",
    tokenizer: Path | None = None,
    file_bytes: int = 1 << 29,
    seed: int = 0,
    overwrite: bool = False,
) -> int:
    """Write a fused checkpoint for the configuration `config`.

    Integers are uniform, scales and floating matrices are bfloat16 values that half precision
    holds too, norms are 1 and biases 0.

    Args:
        config: of a causal language model of transformers.
        folder: where to.
        grid: for all projections; symmetric, with one float16 scale a group.
        tokenizer: folder whose tokenizer files are copied; None: a tiny one is made.
        file_bytes: largest file; a larger tensor gets one of its own.
        seed: of all numbers.
        overwrite: replace what is in `folder`.

    Returns:
        Number of weights.

    Raises:
        GridError: another grid, or one that the shape does not fit.
        OutputError: `folder` is not empty, or cannot be written.
    """
    refuse_existing(folder, overwrite)
    model = hub.meta_model(config)
    plan = plan_surgery(model, grid)
    if not loads_with_transformers(plan) or plan.grid.scale != FloatScale("float16"):
        raise GridError(f"random checkpoints have symmetric grids of plain scales, not {grid}")
    weights = {f"{name}.weight" for name in plan.quantized}
    tied = model.all_tied_weights_keys
    parameters = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    floating = [item for item in parameters if item[0] not in tied and item[0] not in weights]
    random = np.random.default_rng(seed)
    with explain_os_errors(folder), staged_folder(folder, manifest.FILE_NAME) as staged:
        for i, tensors in enumerate(_files(plan, floating, random, file_bytes)):
            save_file(tensors, staged / f"model-{i:05}.safetensors", metadata={"format": "pt"})
        config.architectures = [type(model).__name__]
        config.quantization_config = quantization_config(plan)
        config.save_pretrained(staged)
        _add_tokenizer(staged, tokenizer)
        write_json(staged / manifest.FILE_NAME, _manifest(plan, staged))
    return sum(p.numel() for name, p in model.named_parameters() if name not in tied)


def _files(
    plan: SurgeryPlan,
    floating: list[tuple[str, tuple[int, ...]]],
    random: np.random.Generator,
    most: int,
) -> Iterator[Tensors]:
    """What goes into each file, made when it is asked for."""
    batch: Tensors = {}
    for tensors in _tensors(plan, floating, random):
        if batch and _nbytes(batch) + _nbytes(tensors) > most:
            yield batch
            batch = {}
        batch |= tensors
    yield batch


def _tensors(
    plan: SurgeryPlan, floating: list[tuple[str, tuple[int, ...]]], random: np.random.Generator
) -> Iterator[Tensors]:
    for name, target in plan.quantized.items():
        yield _quantized(name, target.shape, target.grid, random)
    for name, shape in floating:
        yield {name: _floating(name, shape, random)}


def _nbytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _quantized(
    name: str, shape: tuple[int, int], grid: Grid, random: np.random.Generator
) -> Tensors:
    q = random.integers(grid.q_min, grid.q_max + 1, shape, np.int8)
    scale = random.integers(1, 128, (shape[0], grid.groups(shape[1]))) / 2.0**14
    return {
        name + PACKED: pack_grid(q, grid),
        name + SHAPE: np.array(shape, np.int64),
        name + PARTS["scale"]: scale.astype(np.float32),
    }


def _floating(name: str, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
    values = np.full(shape, float(not name.endswith("bias")), ml_dtypes.bfloat16)
    if len(shape) == 2:
        for start in range(0, shape[0], _ROWS):
            part = values[start : start + _ROWS]
            part[:] = random.integers(-127, 128, part.shape, np.int8).astype(np.float32) / 2.0**11
    return values


def _add_tokenizer(folder: Path, tokenizer: Path | None) -> None:
    if tokenizer is None:
        text = "\n".join(f"number {i}" for i in range(200))
        make_tokenizer([text], vocabulary=300).save_pretrained(folder)
        return
    for path in sorted(tokenizer.glob("*token*")):
        shutil.copyfile(path, folder / path.name)


def _manifest(plan: SurgeryPlan, folder: Path) -> dict[str, Any]:
    return {
        "format": manifest.FORMAT,
        "version": manifest.VERSION,
        "tool": {"name": "lrqat", "version": lrqat.__version__, "git_commit": git_commit()},
        "tensors": {
            name: {"grid": target.grid.name, "shape": list(target.shape), "kind": target.kind}
            for name, target in plan.quantized.items()
        },
        "kept": plan.kept,
        "base_model": {"name": "random", "revision": None, "dtype": "bfloat16"},
        "training": {},
        "files": manifest.describe_files(folder, [path.name for path in folder.iterdir()]),
    }
