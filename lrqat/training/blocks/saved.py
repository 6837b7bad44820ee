"""Finished blocks on disk, so that a run that is continued does not fit them again.

A folder beside the states of the run:

    model.layers.0.safetensors     Phi0, scales, minima, zero-points of the block's weights, and its
                                   norms, by name
    ...
    rest.safetensors               those of all weights outside of blocks

A block is written before it is entered, so a killed process leaves whole blocks alone; and each
proves what it holds (`lrqat.training.states.sealed`). What such a process had on disk for a while
(`HiddenStates`, `set_aside`) is removed by the next.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrqat.errors import CheckpointError
from lrqat.layers.weight import QuantizedWeight
from lrqat.training.states.sealed import read_note, read_sealed, write_sealed

FOLDER, _SUFFIX = "blocks", ".safetensors"


def has_blocks(folder: Path) -> bool:
    """Whether the states of a run have finished blocks among them."""
    return bool(_names(folder / FOLDER))


def notes_of(folder: Path) -> dict[str, dict[str, Any]]:
    """What the states of a run note of their finished blocks, by name. Raises CheckpointError."""
    paths = sorted((folder / FOLDER).glob(f"*{_SUFFIX}"))
    return {path.name.removesuffix(_SUFFIX): read_note(path) for path in paths}


class SavedBlocks:
    """The finished blocks of a run.

    Args:
        folder: where the run keeps its states.
        writes: whether this process writes them.
    """

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self._folder, self._writes = folder / FOLDER, writes
        self._found = _names(self._folder)  # all processes see the same, whoever writes meanwhile
        for scratch in self._folder.glob("*.tmp") if writes else ():
            shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def save(
        self,
        name: str,
        weights: Mapping[str, QuantizedWeight],
        norms: Mapping[str, Tensor],
        note: dict[str, Any],
    ) -> None:
        """Write a block that is finished, and a note in JSON."""
        if not self._writes:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        write_sealed(self._path(name), _tensors(weights, norms), note)

    @torch.no_grad()
    def load(
        self, name: str, weights: Mapping[str, QuantizedWeight], norms: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """Put a finished block into weights that have just been made, and norms; its note.

        Raises:
            CheckpointError: the file was altered, or is of other weights.
        """
        path = self._path(name)
        saved, note = read_sealed(path)
        for own, tensor in _tensors(weights, norms).items():
            value = saved.get(own)
            if value is None or value.shape != tensor.shape or value.dtype != tensor.dtype:
                raise CheckpointError(
                    f"{path} is of another model, grid or --phi, or of a run without "
                    "--train-norms; start anew with --overwrite"
                )
            tensor.copy_(value)
        for weight in weights.values():
            weight.restart()
        return note

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"


def _names(folder: Path) -> frozenset[str]:
    return frozenset(path.name.removesuffix(_SUFFIX) for path in folder.glob(f"*{_SUFFIX}"))


def _tensors(
    weights: Mapping[str, QuantizedWeight], norms: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What is kept of a block, by its names in the file."""
    return {
        f"{name}.{part}": tensor.detach()
        for name, weight in weights.items()
        for part in ("phi", "scale", "minimum", "zero_point")
        if (tensor := getattr(weight, part)) is not None
    } | {name: norm.detach() for name, norm in norms.items()}
