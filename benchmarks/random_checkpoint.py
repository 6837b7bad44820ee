"""A model folder with random weights in the shape of a real one, for measuring memory and time.

Written shard by shard, so what is in memory is one shard. Its text is noise; nothing about accuracy
can be learned from it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lrqat.atomic_files import explain_os_errors, refuse_existing, staged_folder, write_json
from lrqat.models import hub

_INDEX = "model.safetensors.index.json"


def write_random_model(
    config: Any,
    folder: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = 1 << 30,
    seed: int = 0,
    overwrite: bool = False,
    progress: Any = None,
) -> int:
    """Write weights for the configuration `config` as `from_pretrained` reads them.

    Matrices are normal with the configuration's `initializer_range`, biases 0, norms 1.

    Args:
        config: of a causal language model of transformers.
        folder: where to.
        dtype: of the weights.
        shard_bytes: largest file; a larger weight gets a file of its own.
        seed: of the weights.
        overwrite: replace what is in `folder`.
        progress: wraps the iterable of shards; None shows nothing.

    Returns:
        Number of weights.

    Raises:
        OutputError: `folder` is not empty, or cannot be written.
    """
    refuse_existing(folder, overwrite)
    model = hub.meta_model(config)
    tied = model.all_tied_weights_keys
    shapes = {name: p for name, p in model.named_parameters() if name not in tied}
    shards = list(_shards(shapes, shard_bytes // dtype.itemsize))
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    generator = torch.Generator().manual_seed(seed)
    spread = getattr(config, "initializer_range", 0.02)
    jobs: Iterable[tuple[str, list[str]]] = list(zip(files, shards, strict=True))
    with explain_os_errors(folder), staged_folder(folder, "config.json") as staged:
        for file, names in progress(jobs) if progress else jobs:
            values = {n: _random(n, shapes[n], spread, generator).to(dtype) for n in names}
            save_file(values, staged / file, metadata={"format": "pt"})
            del values  # before the next shard is made
        weight_map = {n: file for file, names in zip(files, shards, strict=True) for n in names}
        count = sum(p.numel() for p in shapes.values())
        total = {"total_size": count * dtype.itemsize}
        write_json(staged / _INDEX, {"metadata": total, "weight_map": weight_map})
        config.dtype, config.architectures = dtype, [type(model).__name__]
        config.save_pretrained(staged)
    return count


def _shards(shapes: dict[str, Tensor], most: int) -> Iterable[list[str]]:
    """The names in runs of at most `most` values each, or one name."""
    run: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if run and size + shape.numel() > most:
            yield run
            run, size = [], 0
        run.append(name)
        size += shape.numel()
    yield run


def _random(name: str, shape: Tensor, spread: float, generator: torch.Generator) -> Tensor:
    if shape.ndim < 2:
        return torch.zeros(shape.shape) if name.endswith("bias") else torch.ones(shape.shape)
    return torch.empty(shape.shape).normal_(0, spread, generator=generator)
