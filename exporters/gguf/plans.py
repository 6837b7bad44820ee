"""What a plan of a GGUF file holds, and how it is shown: every tensor, its type and its bytes."""

import itertools
from dataclasses import asdict, dataclass, field
from typing import Any

import gguf

from exporters.gguf.blocks import Block, row_bytes
from exporters.gguf.file.key_values import KeyValue
from exporters.gguf.file.shards import split_sizes
from exporters.gguf.modelfile import Modelfile
from exporters.gguf.options import Options
from exporters.gguf.tensors.embedding_and_head import EmbeddingOrHeadType
from exporters.gguf.tensors.sources import Source
from exporters.planning import any_layer, remarks
from lrqat.byte_sizes import parse_size
from lrqat.checkpoint.reader import Checkpoint

_ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT


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
        choices: what an unquantized embedding and head would cost in other types.
        modelfile: what is written beside the file for Ollama, if the options ask for it.
    """

    checkpoint: Checkpoint
    options: Options
    architecture: str = ""
    tensors: list[PlannedTensor] = field(default_factory=list)
    metadata: list[KeyValue] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    choices: list[EmbeddingOrHeadType] = field(default_factory=list)
    modelfile: Modelfile | None = None

    @property
    def compared(self) -> str:
        """What `write` compares with the checkpoint."""
        return "every tensor" if self.options.converter is None else "every trained tensor"

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, padding included; the metadata comes on top."""
        return sum(tensor.padded_bytes for tensor in self.tensors)

    @property
    def shards(self) -> list[list[PlannedTensor]]:
        """The tensors of each file to be; one file unless the options ask for more."""
        size = self.options.split_max_size
        most = parse_size(size, "--split-max-size") if size else None
        counts = split_sizes((tensor.padded_bytes for tensor in self.tensors), most)
        remaining = iter(self.tensors)
        return [list(itertools.islice(remaining, count)) for count in counts]

    def summary(self) -> list[str]:
        """Lines of a table for people; tensors that differ by their block alone share a line."""
        groups: dict[tuple[str, ...], list[PlannedTensor]] = {}
        for tensor in self.tensors:
            groups.setdefault(_alike(tensor), []).append(tensor)
        width = max(26, *(len(name) for name, *_ in groups)) if groups else 26
        lines = [
            f"{'tensor':<{width}} {'type':<6} {'shape':>14} {'count':>5} {'bytes':>14}  source"
        ]
        for (name, type_name, shape, origin, note), members in groups.items():
            total = sum(tensor.nbytes for tensor in members)
            said = ", rows reordered" if members[0].source.row_order is not None else ""
            said += f"; {note}" if note else ""
            columns = f"{name:<{width}} {type_name:<6} {shape:>14} {len(members):>5} {total:>14,}"
            lines.append(f"{columns}  {origin}{said}")
        files = f" in {len(self.shards)} files" if len(self.shards) > 1 else ""
        lines.append(f"{len(self.tensors)} tensors, {self.tensor_bytes:,} bytes{files}")
        lines += [f"choice: {choice.line()}" for choice in self.choices]
        if self.modelfile is not None:
            lines += ["Modelfile:", *(f"  {line}" for line in self.modelfile.lines)]
        return lines + remarks(self.notes, self.refusals)

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


def _alike(tensor: PlannedTensor) -> tuple[str, str, str, str, str]:
    """Columns of the summary, the number of the block taken out of the names."""
    source = tensor.source
    name = any_layer(source.name)
    origin = any_layer(source.origin)
    return name, tensor.block.NAME, " x ".join(map(str, source.shape)), origin, tensor.note
