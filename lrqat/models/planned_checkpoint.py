"""The checkpoint that a plan will be fused to, before anything is trained.

Exporters plan by it as by a fused one, so that the size of a file is known, to the byte, before a
run. Names, shapes, grids and tokenizer are those that `fuse` writes, what stays unquantized is read
from the model's own files, and weights on a grid have scales of 1 and no integers.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lrqat.atomic_files import write_json
from lrqat.checkpoint import manifest as manifests
from lrqat.checkpoint.reader import Checkpoint
from lrqat.checkpoint.safetensors_file import StoredTensor, TensorFile
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.errors import ModelError
from lrqat.grids.grid import Grid
from lrqat.models.fuse import manifest_of, save_settings
from lrqat.models.names_in_files import tensors_by_parameter
from lrqat.models.stored_model import StoredModel
from lrqat.models.surgery import SurgeryPlan
from lrqat.models.tying import is_tied
from lrqat.models.weight_files import Weights

_NO_TENSORS = "model.safetensors"


class PlannedCheckpoint(Checkpoint):
    """A view of a model's files as what will be made of them."""

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        config: dict[str, Any],
        origin: Mapping[str, str],
        weights: Weights,
    ) -> None:
        """A checkpoint of which everything but the tensors is in a folder.

        Args:
            path: the folder.
            manifest: lrqat.json.
            config: config.json.
            origin: name of a floating tensor -> that in the model's files.
            weights: the model's files.
        """
        super().__init__(path, manifest, config)
        files = {file: TensorFile(file) for file in {weights.path(own) for own in origin.values()}}
        self._origin = dict(origin)
        self._file_of = {name: files[weights.path(own)] for name, own in origin.items()}

    def floating(self, name: str, rows: slice = slice(None)) -> NDArray[Any]:
        """Read what stays unquantized, from the model's files."""
        self._stored(name)
        return self._file_of[name].read(self._origin[name], rows)

    def scales(self, name: str) -> StoredScales:
        """Scales of one row: whether a type holds them does not depend on how many there are."""
        one = np.ones((1, 1), np.float32)
        return StoredScales(one, tensor_scale=one)

    def _stored(self, name: str) -> StoredTensor:
        found = self._file_of.get(name)
        return super()._stored(name) if found is None else found.tensors[self._origin[name]]


@contextmanager
def planned_checkpoint(
    stored: StoredModel,
    tokenizer: Any,
    plan: SurgeryPlan,
    *,
    base_model: dict[str, Any],
    training: dict[str, Any] | None = None,
    reference: dict[str, Any] | None = None,
    activations: dict[str, Any] | None = None,
) -> Iterator[PlannedCheckpoint]:
    """What `fuse` will write of a model, for as long as it is looked at.

    Args:
        stored: the model's files.
        tokenizer: the model's.
        plan: which weights go on which grid.
        base_model: as for `fuse`, like the others; of numbers and hashes no more than that they
            are there has to be right.
        training: of `fuse`.
        reference: of `fuse`.
        activations: what will be rounded beside the weights.

    Raises:
        ModelError: the weights are not stored one by one under the names that transformers gives
            them, or not on this machine.
    """
    origin = _origins(stored, plan)
    assert stored.weights is not None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_settings(stored.skeleton, tokenizer, plan, folder)
        save_file({}, folder / _NO_TENSORS)
        tensors = dict(_tensors(plan))
        manifest = manifest_of(tensors, plan, base_model, training, reference, activations or {})
        manifest["files"] = manifests.describe_files(folder, manifests.names_in(folder))
        write_json(folder / manifests.FILE_NAME, manifest)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        yield PlannedCheckpoint(folder, manifest, config, origin, stored.weights)


def _tensors(plan: SurgeryPlan) -> Iterator[tuple[str, tuple[Grid, tuple[int, int]]]]:
    """Module name -> grid and shape, of every expert for itself."""
    for name, target in plan.quantized.items():
        stacked = target.kind == WeightKind.EXPERTS
        for each in [f"{name}.{i}" for i in range(target.count)] if stacked else [name]:
            yield each, (target.grid, target.shape)


def _origins(stored: StoredModel, plan: SurgeryPlan) -> dict[str, str]:
    """What stays in floating point -> the tensor of the model's files that it is."""
    skeleton = stored.skeleton
    gone = {*plan.quantized, *(f"{name}.weight" for name in plan.quantized)}
    if is_tied(skeleton):
        head = skeleton.get_output_embeddings()
        gone |= {f"{name}.weight" for name, module in skeleton.named_modules() if module is head}
    names = [name for name in skeleton.state_dict() if name not in gone]
    found = tensors_by_parameter(skeleton, stored.weights.names) if stored.weights else {}
    missing = [name for name in names if name not in found]
    if missing or stored.weights is None:
        raise ModelError(
            f"{len(missing)} tensors are not in the model's files under the names that "
            f"transformers gives them, the first {missing[:1]}; use an intact copy of the model"
        )
    return {name: found[name] for name in names}
