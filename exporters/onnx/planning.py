"""The plan of an ONNX folder: every initializer, its type and bytes, and every reason to refuse."""

import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any

import onnx_ir as ir

from exporters.activations import refuses_activations
from exporters.onnx.architectures import find_architecture, refuses_architecture
from exporters.onnx.options import Options
from exporters.onnx.weights import KINDS
from lrqat.checkpoint import Checkpoint
from lrqat.errors import CheckpointError, UserError
from lrqat.grid import Grid

# Blocks that ONNX Runtime's fusion takes (qdq_selectors.cc, ValidateDQForMatMulNBits).
_SMALLEST_FUSED_BLOCK = 16


@dataclass(frozen=True)
class PlannedTensor:
    """One initializer of the file.

    Attributes:
        name: in the ONNX file.
        kind: its form, a name in `exporters.onnx.weights.KINDS`.
        source: module name of a projection, or name of a floating tensor, in the checkpoint.
        dtype: ONNX element type.
        shape: in the ONNX file.
    """

    name: str
    kind: str
    source: str
    dtype: ir.DataType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.ceil(math.prod(self.shape) * self.dtype.bitwidth / 8)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "name": self.name,
            "type": self.dtype.name,
            "shape": list(self.shape),
            "bytes": self.nbytes,
            "source": self.source,
            "quantized": self.kind == "integers",
        }


@dataclass(eq=False)
class Plan:
    """What `write` will do.

    Attributes:
        checkpoint: the opened checkpoint.
        options: the choices it was made with.
        tensors: every initializer that holds weights.
        refusals: reasons not to write; a plan with any cannot be written.
        notes: what a user should know.
    """

    checkpoint: Checkpoint
    options: Options
    tensors: list[PlannedTensor] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def summary(self) -> list[str]:
        """Lines of a table for people; the layers of a model share a line."""
        groups: dict[tuple[str, str, str], list[PlannedTensor]] = {}
        for tensor in self.tensors:
            shape = " x ".join(map(str, tensor.shape))
            name = re.sub(r"\.\d+\.", ".*.", tensor.name)
            groups.setdefault((name, tensor.dtype.name, shape), []).append(tensor)
        lines = [f"{'initializer':<52} {'type':<5} {'shape':>14} {'count':>5} {'bytes':>14}"]
        for (name, dtype, shape), members in groups.items():
            total = sum(tensor.nbytes for tensor in members)
            lines.append(f"{name:<52} {dtype:<5} {shape:>14} {len(members):>5} {total:>14,}")
        lines.append(f"{len(self.tensors)} initializers, {self.tensor_bytes:,} bytes")
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"refused: {reason}" for reason in self.refusals]
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "format": "onnx",
            "checkpoint": str(self.checkpoint.path),
            "options": asdict(self.options),
            "tensor_bytes": self.tensor_bytes,
            "tensors": [tensor.to_json() for tensor in self.tensors],
            "notes": self.notes,
            "refusals": self.refusals,
        }


def plan(checkpoint: Checkpoint, options: Options | None = None) -> Plan:
    """Plan the export of `checkpoint`; no weights are read and nothing is written.

    Raises:
        CheckpointError: the checkpoint itself is not valid.
    """
    made = Plan(checkpoint, options or Options())
    for name in checkpoint.quantized_names:
        try:
            grid, shape = checkpoint.grid(name), checkpoint.shape(name)
            grid.groups(shape[1])
        except CheckpointError:
            raise
        except UserError as error:
            made.refusals.append(f"{name}: {error}")
            continue
        reason = _refuses(checkpoint, name, grid)
        if reason:
            made.refusals.append(f"{name}: {reason}")
            continue
        made.tensors.append(_planned(f"{name}.weight", "integers", name, shape, grid))
        made.tensors.append(_planned(f"{name}.weight_scale", "scales", name, shape, grid))
    architecture = find_architecture(checkpoint.config)
    linear = {f"{name}.weight" for name in checkpoint.manifest["kept"]}
    for name in checkpoint.floating_names:
        is_linear = name in linear and not architecture.is_transposed(name)
        kind = "linear" if is_linear else "float"
        made.tensors.append(_planned(name, kind, name, checkpoint.shape(name), None))
    reasons = (
        refuses_architecture(checkpoint.config),
        refuses_activations(checkpoint, "ONNX Runtime", ("ort-level4",)),
    )
    made.refusals += [reason for reason in reasons if reason]
    made.notes += _notes(checkpoint)
    return made


def _refuses(checkpoint: Checkpoint, name: str, grid: Grid) -> str | None:
    if checkpoint.kind(name) not in ("linear", "conv1d"):
        return f"a trained {checkpoint.kind(name)} has no form in ONNX here; train it with --keep"
    if not grid.symmetric:
        return f"{grid.name} is not symmetric; train on a grid like int4-g32, which is"
    return None


def default_name(checkpoint: Checkpoint) -> str:
    """The folder inside the checkpoint's, as Optimum and transformers.js look for it."""
    return "onnx"


def _planned(
    name: str, kind: str, source: str, shape: tuple[int, ...], grid: Grid | None
) -> PlannedTensor:
    form = KINDS[kind]
    return PlannedTensor(name, kind, source, form.dtype(grid), form.shape(shape, grid))


def _notes(checkpoint: Checkpoint) -> list[str]:
    slow = {
        grid.name
        for grid in map(checkpoint.grid, checkpoint.quantized_names)
        if grid.group_size is not None
        and (grid.group_size < _SMALLEST_FUSED_BLOCK or grid.group_size & (grid.group_size - 1))
    }
    return [
        f"{name}: ONNX Runtime does not fuse this group size; the file is exact but slow there"
        for name in sorted(slow)
    ]
