"""The plan of an ONNX folder: every initializer, its type and bytes, and every reason to refuse."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from exporters.layers import any_layer
from exporters.onnx.activations import (
    QDQ,
    Rounding,
    cache_bits,
    refuses_roundings,
    roundings,
    with_level,
)
from exporters.onnx.architectures import find_architecture, refuses_architecture
from exporters.onnx.options import Options
from exporters.onnx.weights import KINDS, refuses_grid, storage_of
from lrqat.checkpoint import Checkpoint
from lrqat.errors import CheckpointError, UserError
from lrqat.grid import Grid

# What holds a weight that a product takes: y = x @ weight.
_PRODUCTS = ("linear", "conv1d")


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
        options: the choices it was made with, none left open.
        tensors: every initializer that holds weights.
        roundings: how inputs of layers are rounded, by module name.
        refusals: reasons not to write; a plan with any cannot be written.
        notes: what a user should know.
    """

    checkpoint: Checkpoint
    options: Options
    tensors: list[PlannedTensor] = field(default_factory=list)
    roundings: dict[str, Rounding] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def genai(self) -> bool:
        """Whether ONNX Runtime GenAI can run it: its caches have two tensors a layer."""
        return cache_bits(self.checkpoint) is None or self.options.kv_cache == "float"

    def summary(self) -> list[str]:
        """Lines of a table for people; the layers of a model share a line."""
        groups: dict[tuple[str, str, str], list[PlannedTensor]] = {}
        for tensor in self.tensors:
            shape = " x ".join(map(str, tensor.shape))
            name = any_layer(tensor.name)
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
            "options": self.options.to_json(),
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
    made = Plan(checkpoint, with_level(checkpoint, options or Options()).resolved())
    for name in checkpoint.quantized_names:
        _plan_trained(made, name)
    architecture = find_architecture(checkpoint.config)
    kept = {f"{name}.weight" for name in checkpoint.manifest["kept"]}
    for name in checkpoint.floating_names:
        is_linear = name in kept and not architecture.is_transposed(name)
        kind = "linear" if is_linear else "float"
        made.tensors.append(_planned(made, name, kind, name, checkpoint.shape(name)))
    reason = refuses_architecture(checkpoint.config)
    made.refusals += [reason] if reason else []
    _plan_roundings(made)
    two_bits = any(tensor.dtype == ir.DataType.INT2 for tensor in made.tensors)
    made.options = made.options.with_integers(two_bits)
    made.notes += _notes(made)
    return made


def _plan_trained(made: Plan, name: str) -> None:
    """Add the initializers of one trained weight, or the reason why there are none."""
    try:
        grid, shape = made.checkpoint.grid(name), made.checkpoint.shape(name)
        grid.groups(shape[1])
    except CheckpointError:
        raise
    except UserError as error:
        made.refusals.append(f"{name}: {error}")
        return
    kind = made.checkpoint.kind(name)
    reason = refuses_grid(grid, made.options.float_dtype)
    if kind not in _PRODUCTS:
        reason = f"a trained {kind} has no form in ONNX here; train it with --keep"
    if reason:
        made.refusals.append(f"{name}: {reason}")
        return
    two_bits = made.options.two_bit_type == "int2"
    storage = storage_of(grid, shape[0], two_bits=two_bits)
    assert storage is not None  # refuses_grid
    parts = {"weight": "integers", "weight_scale": "scales"}
    if grid.zero_point:
        parts["weight_zero_point"] = "zero_points"
    for suffix, part in parts.items():
        dtype = None if part == "scales" else storage.dtype
        made.tensors.append(_planned(made, f"{name}.{suffix}", part, name, shape, grid, dtype))


def _plan_roundings(made: Plan) -> None:
    """Add what inputs of layers are rounded to, and the initializers of fixed ranges."""
    products = {t.source for t in made.tensors if t.kind == "integers"}
    products |= {t.source.removesuffix(".weight") for t in made.tensors if t.kind == "linear"}
    made.refusals += refuses_roundings(made.checkpoint, made.options, products)
    if made.refusals:
        return
    made.roundings = roundings(made.checkpoint, made.options)
    for name, rounding in made.roundings.items():
        if rounding.grid.static:
            unsigned = ir.DataType[f"UINT{rounding.grid.bits}"]
            types = {
                "scale": ir.DataType.FLOAT,
                "zero_point": unsigned if rounding.form == QDQ else ir.DataType.FLOAT,
            }
            made.tensors += [
                _planned(made, f"{name}.input.{part}", f"input_{part}", name, (), None, dtype)
                for part, dtype in types.items()
            ]


def default_name(checkpoint: Checkpoint, options: Options | None = None) -> str:
    """The folder inside the checkpoint's, as Optimum and transformers.js look for it."""
    return "onnx"


def _planned(
    made: Plan,
    name: str,
    kind: str,
    source: str,
    shape: tuple[int, ...],
    grid: Grid | None = None,
    dtype: ir.DataType | None = None,
) -> PlannedTensor:
    found = dtype or made.options.float_dtype
    return PlannedTensor(name, kind, source, found, KINDS[kind].shape(shape, grid))


def _notes(made: Plan) -> list[str]:
    """What the user should know."""
    notes = _wider(made)
    if not made.genai:
        notes.append(
            f"keys and values are passed on as {cache_bits(made.checkpoint)}-bit integers with "
            "their scales, which ONNX Runtime GenAI cannot do; --kv-cache float is for it"
        )
    if made.options.float_dtype == ir.DataType.FLOAT16:
        notes.append("float16: what stays floating is rounded, and products are in half precision")
    return notes


def _wider(made: Plan) -> list[str]:
    """Which integers are in a wider type than they need."""
    found: Counter[tuple[Grid, str]] = Counter()
    for tensor in made.tensors:
        if tensor.kind == "integers":
            grid = made.checkpoint.grid(tensor.source)
            found[grid, tensor.dtype.name] += tensor.dtype.bitwidth > grid.bits
    return [
        f"{grid.name}: the {f'{len(grid.levels)} levels' if grid.levels else f'{grid.bits} bits'} "
        f"of {count} weights are stored as {dtype}, exactly"
        for (grid, dtype), count in found.items()
        if count
    ]
