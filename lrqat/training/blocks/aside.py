"""Tensors that are hardly ever wanted again, on disk for a while."""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


@contextlib.contextmanager
def set_aside(tensors: Iterable[Tensor], folder: Path) -> Iterator[Callable[[], None]]:
    """Keep a copy of tensors in a file of `folder` until the end.

    Yields:
        A function that gives them the values that they had.

    Raises:
        OSError: the disk is full or not writable.
    """
    kept = {str(n): tensor for n, tensor in enumerate(tensors)}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="start-", suffix=".tmp") as scratch:
        path = Path(scratch, "start.safetensors")
        save_file({name: tensor.detach() for name, tensor in kept.items()}, path)

        @torch.no_grad()
        def restore() -> None:
            with safe_open(path, "pt") as file:
                for name, tensor in kept.items():
                    tensor.copy_(file.get_tensor(name))

        yield restore
