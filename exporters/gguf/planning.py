"""The plan of a GGUF file: every tensor, its type and its bytes, and every reason to refuse.

Making a plan writes nothing. It reads floating matrices to see whether a narrower type holds them
exactly, and nothing else of the weights.
"""

import itertools
import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import gguf

from exporters.activations import activation_grid, refuses_activations
from exporters.gguf.architectures import Architecture, find_architecture
from exporters.gguf.blocks import Block, float_blocks, row_bytes
from exporters.gguf.hyperparameters import hyperparameters, refusals
from exporters.gguf.key_values import KeyValue
from exporters.gguf.metadata import vocabulary_metadata, without_fatal_name
from exporters.gguf.options import Options
from exporters.gguf.provenance import general_metadata, provenance
from exporters.gguf.selection import choose_float_block, choose_integer_block, exact_types
from exporters.gguf.shards import parse_size, split_sizes
from exporters.gguf.sources import Source, find_sources
from exporters.gguf.tables import (
    TableChoice,
    changed_values,
    check_trained,
    refuses_tables,
    table_choice,
)
from exporters.gguf.upstream import refuses_converter
from exporters.layers import any_layer
from lrqat.checkpoint import Checkpoint
from lrqat.errors import ExportRefusedError

_ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
_MAX_NAME_BYTES = 63  # GGML_MAX_NAME less its terminating zero


def padded(size: int) -> int:
    """Bytes up to where the next tensor may begin."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True, eq=False)
class PlannedTensor:
    """One tensor of the file to be.

    Attributes:
        source: where it comes from.
        block: the ggml type it is stored in.
        note: what a user should know of it (empty: nothing).
    """

    source: Source
    block: Block
    note: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of its data, without padding."""
        return self.source.rows * row_bytes(self.block, self.source.shape[-1])

    @property
    def padded_bytes(self) -> int:
        """Bytes that it takes in the file."""
        return padded(self.nbytes)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        source = self.source
        return {
            "name": source.name,
            "type": self.block.NAME,
            "shape": list(source.shape),
            "bytes": self.nbytes,
            "source": source.origin,
            "quantized": source.quantized,
            "rows_reordered": source.row_order is not None,
            **({"note": self.note} if self.note else {}),
        }


@dataclass(eq=False)
class Plan:
    """What `write` will do.

    Attributes:
        checkpoint: the opened checkpoint.
        options: the choices it was made with.
        architecture: llama.cpp's name of the architecture.
        tensors: in file order.
        metadata: in file order, without general.architecture, which the writer puts first.
        refusals: reasons not to write; a plan with any cannot be written.
        notes: what a user should know.
        choices: what an embedding and a head that stay floating would cost in other types.
    """

    checkpoint: Checkpoint
    options: Options
    architecture: str = ""
    tensors: list[PlannedTensor] = field(default_factory=list)
    metadata: list[KeyValue] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    choices: list[TableChoice] = field(default_factory=list)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, padding included; the metadata comes on top."""
        return sum(tensor.padded_bytes for tensor in self.tensors)

    @property
    def shards(self) -> list[list[PlannedTensor]]:
        """The tensors of each file to be; one file unless the options ask for more."""
        size = self.options.split_max_size
        counts = split_sizes(
            (tensor.padded_bytes for tensor in self.tensors), parse_size(size) if size else None
        )
        remaining = iter(self.tensors)
        return [list(itertools.islice(remaining, count)) for count in counts]

    @property
    def file_type(self) -> int:
        """What `general.file_type` says: the type of most quantised weights."""
        weights: Counter[int] = Counter()
        for tensor in self.tensors:
            if tensor.source.quantized:
                weights[tensor.block.FILE_TYPE] += math.prod(tensor.source.shape)
        return weights.most_common(1)[0][0] if weights else gguf.LlamaFileType.ALL_F32

    def summary(self) -> list[str]:
        """Lines of a table for people; tensors that differ by their block alone share a line."""
        groups: dict[tuple[str, ...], list[PlannedTensor]] = {}
        for tensor in self.tensors:
            groups.setdefault(_alike(tensor), []).append(tensor)
        lines = [f"{'tensor':<26} {'type':<6} {'shape':>14} {'count':>5} {'bytes':>14}  source"]
        for (name, kind, shape, origin, note), members in groups.items():
            total = sum(tensor.nbytes for tensor in members)
            remark = ", rows reordered" if members[0].source.row_order is not None else ""
            remark += f"; {note}" if note else ""
            lines.append(
                f"{name:<26} {kind:<6} {shape:>14} {len(members):>5} {total:>14,}  {origin}{remark}"
            )
        files = f" in {len(self.shards)} files" if len(self.shards) > 1 else ""
        lines.append(f"{len(self.tensors)} tensors, {self.tensor_bytes:,} bytes{files}")
        lines += [f"choice: {choice.line()}" for choice in self.choices]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"refused: {reason}" for reason in self.refusals]
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`; long metadata arrays are given by their length."""
        return {
            "format": "gguf",
            "checkpoint": str(self.checkpoint.path),
            "options": asdict(self.options),
            "architecture": self.architecture,
            "tensor_bytes": self.tensor_bytes,
            "files": len(self.shards),
            "tensors": [tensor.to_json() for tensor in self.tensors],
            "metadata": {
                entry.key: len(entry.value) if isinstance(entry.value, list) else entry.value
                for entry in self.metadata
            },
            "choices": [choice.to_json() for choice in self.choices],
            "notes": self.notes,
            "refusals": self.refusals,
        }


def plan(checkpoint: Checkpoint, options: Options | None = None) -> Plan:
    """Plan the export of `checkpoint`.

    Everything that stands in the way of an exact file becomes a refusal of the plan, all of them
    at once.

    Raises:
        CheckpointError: the checkpoint itself is not valid.
    """
    made = Plan(checkpoint, options or Options())
    if made.options.converter is not None:
        return _plan_converter(made)
    try:
        architecture = find_architecture(checkpoint.config)
    except ExportRefusedError as error:
        made.refusals.append(str(error))
        return made
    made.architecture = architecture.name
    made.refusals += refusals(architecture, checkpoint.config)
    made.notes += architecture.notes(architecture.read(checkpoint.config))
    reason = refuses_activations(checkpoint, "llama.cpp", ("q8_0", "q8_k"))
    made.refusals += [reason] if reason else []
    _plan_tensors(made, architecture)
    _plan_metadata(made, architecture)
    return made


def _plan_converter(made: Plan) -> Plan:
    """The plan of what llama.cpp's converter will lay out, which only running it tells."""
    reasons = (
        refuses_converter(made.options),
        refuses_activations(made.checkpoint, "llama.cpp", ("q8_0", "q8_k")),
    )
    made.refusals += [reason for reason in reasons if reason]
    made.notes.append(
        f"the converter in {made.options.converter} decides on names and layout; what tensors that "
        "makes only running it tells, so none are listed here"
    )
    return made


def default_name(checkpoint: Checkpoint, options: Options | None = None) -> str:
    """A file name that says what is in it: "model-q4_0.gguf", "model-q4_0-q6_k.gguf" ...

    Of several types the one of most weights comes first.
    """
    chosen = options or Options()
    if chosen.type != "auto":
        return f"model-{chosen.type}.gguf"
    weights: Counter[str] = Counter()
    for name in checkpoint.quantized_names:
        shape = checkpoint.shape(name)
        types = exact_types(checkpoint.grid(name), shape[-1], activation_grid(checkpoint, name))
        weights[types[0] if types else "none"] += math.prod(shape)
    return f"model-{'-'.join(name for name, _ in weights.most_common())}.gguf"


def _alike(tensor: PlannedTensor) -> tuple[str, str, str, str, str]:
    """Columns of the summary, the number of the block taken out of the names."""
    source = tensor.source
    name = any_layer(source.name)
    origin = any_layer(source.origin)
    return name, tensor.block.NAME, " x ".join(map(str, source.shape)), origin, tensor.note


def _plan_tensors(made: Plan, architecture: Architecture) -> None:
    try:
        sources = find_sources(made.checkpoint, architecture)
    except ExportRefusedError as error:
        made.refusals.append(str(error))
        return
    made.refusals += refuses_tables(sources, made.options)
    for source in sources:
        try:
            made.tensors.append(_plan_tensor(made, source))
        except ExportRefusedError as error:
            made.refusals.append(str(error))


def _plan_tensor(made: Plan, source: Source) -> PlannedTensor:
    if len(source.name.encode()) > _MAX_NAME_BYTES:
        raise ExportRefusedError(f"{source.name!r} is longer than {_MAX_NAME_BYTES} bytes")
    if source.quantized:
        exact, note = choose_integer_block(made.checkpoint, source, made.options)
        check_trained(made.checkpoint, source, exact, made.options)
        return PlannedTensor(source, exact, note)
    if source.is_float32 or made.options.type == "f32":
        return PlannedTensor(source, float_blocks()["f32"])
    changed = changed_values(made.checkpoint, source)
    block, note = choose_float_block(made.checkpoint, source, made.options, changed)
    choice = table_choice(source, block, changed)
    made.choices += [choice] if choice else []
    return PlannedTensor(source, block, note)


def _plan_metadata(made: Plan, architecture: Architecture) -> None:
    checkpoint = made.checkpoint
    made.metadata += general_metadata(checkpoint, made.file_type)
    made.metadata += hyperparameters(architecture, checkpoint.config)
    try:
        entries, notes = vocabulary_metadata(checkpoint, made.options.pre)
        made.metadata, name_notes = without_fatal_name(made.metadata + entries)
        made.notes += [*notes, *name_notes]
    except ExportRefusedError as error:
        made.refusals.append(str(error))
    made.metadata += provenance(checkpoint)
