"""Finished blocks on disk, so that a run that is continued does not fit them again.

A folder beside the states of the run:

    model.layers.0.safetensors     Phi0, scales, minima, zero-points of the block's weights, by name
    ...
    rest.safetensors               those of all weights outside of blocks
    blocks.json                    {name: {"sha256", "bytes", "note"}} of the finished ones

A block is written before it is entered, so a killed process leaves whole blocks alone.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lrqat.atomic_files import replaced_file, write_json
from lrqat.checkpoint.manifest import sha256_of
from lrqat.errors import CheckpointError
from lrqat.foreign_files import ForeignFileError, read_json
from lrqat.layers.weight import QuantizedWeight

FOLDER, LIST = "blocks", "blocks.json"


def has_blocks(folder: Path) -> bool:
    """Whether the states of a run have finished blocks among them."""
    return (folder / FOLDER / LIST).is_file()


class SavedBlocks:
    """The finished blocks of a run.

    Args:
        folder: where the run keeps its states.
        writes: whether this process writes them.
    """

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self._folder, self._writes = folder / FOLDER, writes
        self._entries = self._read()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def note(self, name: str) -> dict[str, Any]:
        """What was noted with a block."""
        return dict(self._entries[name]["note"])

    def save(self, name: str, weights: dict[str, QuantizedWeight], note: dict[str, Any]) -> None:
        """Write a block that is finished, and a note in JSON."""
        if not self._writes:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(name)
        with replaced_file(path, overwrite=True) as staging:
            tensors = {
                f"{weight}.{part}": tensor.cpu().contiguous()
                for weight, of in weights.items()
                for part, tensor in _parts(of).items()
            }
            save_file(tensors, staging, metadata={"format": "pt"})
        entry = {"sha256": sha256_of(path), "bytes": path.stat().st_size, "note": note}
        self._entries[name] = entry
        with replaced_file(self._folder / LIST, overwrite=True) as staging:
            write_json(staging, self._entries)

    @torch.no_grad()
    def load(self, name: str, weights: dict[str, QuantizedWeight]) -> None:
        """Put a finished block into weights that have just been made.

        Raises:
            CheckpointError: the file was altered, or is of other weights.
        """
        path, entry = self._path(name), self._entries[name]
        if not path.is_file() or sha256_of(path) != entry["sha256"]:
            raise CheckpointError(
                f"{path} was altered: its sha256 is not the one in {LIST}; start anew with "
                "--overwrite"
            )
        saved = load_file(path)
        for weight, of in weights.items():
            for part, tensor in _parts(of).items():
                value = saved.get(f"{weight}.{part}")
                if value is None or value.shape != tensor.shape or value.dtype != tensor.dtype:
                    raise CheckpointError(
                        f"{path} is of another model, grid or --phi; start anew with --overwrite"
                    )
                tensor.data.copy_(value)
            of.restart()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"

    def _read(self) -> dict[str, Any]:
        try:
            return read_json(self._folder / LIST) if (self._folder / LIST).is_file() else {}
        except ForeignFileError as error:
            raise CheckpointError(f"{error}; start anew with --overwrite") from None


def _parts(weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    parts = {name: getattr(weight, name) for name in ("phi", "scale", "minimum", "zero_point")}
    return {name: part.detach() for name, part in parts.items() if part is not None}
