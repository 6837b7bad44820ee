"""A fused checkpoint written tensor by tensor: no more of the model is in memory than a file takes.

Whether transformers can load everything is known at the end, and decides what the files are called
(`lrqat.models.standard_format`); until then they have names of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from lrqat.atomic_files import write_json
from lrqat.checkpoint.reader import PACKED, SHAPE, QuantizedTensor
from lrqat.checkpoint.stored_scales import PARTS
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.grids.grid import Grid
from lrqat.grids.packing import pack_grid
from lrqat.models.fuse import manifest_of, save_settings, write_manifest
from lrqat.models.standard_format import loads_with_transformers
from lrqat.models.surgery import SurgeryPlan

_FILE_BYTES = 1 << 28  # about so much is collected before it is written
_INDEX = "model.safetensors.index.json"


@dataclass
class _Files:
    """Tensors on their way into files of one kind."""

    folder: Path
    prefix: str
    written: list[tuple[Path, list[str]]] = field(default_factory=list)
    waiting: dict[str, Tensor] = field(default_factory=dict)

    def add(self, tensors: dict[str, Tensor]) -> None:
        self.waiting |= tensors
        if sum(tensor.nbytes for tensor in self.waiting.values()) >= _FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.waiting:
            path = self.folder / f"{self.prefix}-{len(self.written)}"
            save_file(self.waiting, path, metadata={"format": "pt"})
            self.written.append((path, list(self.waiting)))
            self.waiting = {}

    def take_over(self, other: "_Files") -> None:
        """Add the files of another kind to these."""
        other.flush()
        self.flush()
        self.written += other.written

    def rename(self, stem: str) -> dict[str, str]:
        """Give the files their names. Returns tensor -> file."""
        self.flush()
        found: dict[str, str] = {}
        for i, (path, names) in enumerate(self.written, start=1):
            part = f"-{i:05}-of-{len(self.written):05}" if len(self.written) > 1 else ""
            path.rename(self.folder / f"{stem}{part}.safetensors")
            found |= dict.fromkeys(names, f"{stem}{part}.safetensors")
        return found

    def drop(self) -> None:
        """Remove what was written."""
        self.flush()
        for path, _ in self.written:
            path.unlink()


class CheckpointWriter:
    """Writes a checkpoint into a folder that is being made.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._state = _Files(folder, "state")
        self._own = _Files(folder, "own")  # which compressed-tensors does not know
        self._embedding = _Files(folder, "embedding")  # for transformers alone
        self._tensors: dict[str, tuple[Grid, tuple[int, int]]] = {}

    def add_weight(self, tensor: QuantizedTensor, kind: WeightKind) -> None:
        """A weight on a grid."""
        rows, columns = tensor.q.shape
        self._tensors[tensor.name] = tensor.grid, (rows, columns)
        packed = {
            PACKED: torch.from_numpy(np.ascontiguousarray(pack_grid(tensor.q, tensor.grid))),
            SHAPE: torch.tensor([rows, columns]),
        }
        parts = {name: getattr(tensor.scales, name) for name in PARTS}
        scales = {PARTS[n]: torch.from_numpy(np.ascontiguousarray(p))
                  for n, p in parts.items() if p is not None}  # fmt: skip
        known = packed | {PARTS["scale"]: scales.pop(PARTS["scale"])}
        is_embedding = kind == WeightKind.EMBEDDING
        (self._own if is_embedding else self._state).add(_named(tensor.name, known))
        self._own.add(_named(tensor.name, scales))
        if is_embedding:
            self._embedding.add({f"{tensor.name}.weight": torch.from_numpy(tensor.dequantize())})
            self._embedding.flush()

    def add_floating(self, name: str, value: Tensor) -> None:
        """A tensor that stays as it is."""
        self._state.add({name: value.contiguous()})

    def finish(
        self,
        model: Any,
        tokenizer: Any,
        plan: SurgeryPlan,
        base_model: dict[str, Any],
        provenance: dict[str, Any],
        licenses: Mapping[str, bytes],
    ) -> None:
        """Name the files, and write all that is beside them; lrqat.json comes last.

        Args:
            model: on the meta device, with its configuration and generation settings.
            tokenizer: the model's.
            plan: what is on which grid, and why the rest is not.
            base_model: {"name", "revision", "dtype"}.
            provenance: where the integers come from.
            licenses: texts that go with the model, of `lrqat.models.license_files`.
        """
        standard = loads_with_transformers(plan)
        if standard:
            self._state.take_over(self._embedding)
            self._write_index(self._state.rename("model"))
        else:
            self._embedding.drop()
            self._state.rename("lrqat")
        self._own.rename("lrqat-scales")
        save_settings(model, tokenizer, plan, self._folder, licenses)
        manifest = manifest_of(self._tensors, plan, base_model, provenance, None, {})
        write_manifest(self._folder, manifest)

    def _write_index(self, files: dict[str, str]) -> None:
        """What transformers finds the files of a model by, if there are several."""
        if len(set(files.values())) > 1:
            size = sum((self._folder / file).stat().st_size for file in set(files.values()))
            index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(files.items()))}
            write_json(self._folder / _INDEX, index)


def _named(module: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {module + end: part for end, part in parts.items()}
