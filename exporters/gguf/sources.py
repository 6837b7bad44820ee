"""Where each tensor of a GGUF file comes from: names, shapes and row order, and reading one.

One tensor is read at a time, and a large floating matrix in pieces, so memory does not grow with
the model.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from exporters.gguf.architectures import Architecture, Config, Rows
from exporters.gguf.config_values import positive_int
from exporters.gguf.stored import Stored, stored_tensors
from lrqat.checkpoint import Checkpoint, QuantizedTensor
from lrqat.errors import CheckpointError, ExportRefusedError
from lrqat.grid import Grid

_HEAD, _EMBEDDING = "output.weight", "token_embd.weight"
# Matrices whose products upstream keeps in float32: F16 would round what decides on experts.
_FLOAT32 = ("ffn_gate_inp.weight", "position_embd.weight")

_PIECE_VALUES = 1 << 18  # 1 MiB as float32, which a core's cache holds


@dataclass(frozen=True, eq=False)
class Source:
    """One tensor of the file to be.

    Attributes:
        name: its name in GGUF.
        origin: module name of a quantised weight, or of the stack of experts that `stack` lists;
            name of a floating tensor; or "computed".
        quantized: whether it is integers and scales.
        shape: its shape, (out, in), (n,) or (experts, out, in); GGUF lists it in reverse.
        stack: module names of the experts' weights, in order.
        row_order: source row of each row (of each expert), or None if rows keep their order.
        transposed: whether the checkpoint holds it as (in, out).
        offset: what is added to its values.
        values: the numbers of a computed tensor, float32.
    """

    name: str
    origin: str
    quantized: bool
    shape: tuple[int, ...]
    stack: tuple[str, ...] = ()
    row_order: Rows | None = None
    transposed: bool = False
    offset: float = 0.0
    values: NDArray[np.float32] | None = None

    @property
    def rows(self) -> int:
        """Rows when seen as a matrix: 1 for a vector."""
        return math.prod(self.shape[:-1])

    @property
    def is_float32(self) -> bool:
        """Whether it must be stored as float32."""
        return len(self.shape) == 1 or self.name.endswith(_FLOAT32)

    @property
    def working_bytes(self) -> int:
        """About what packing or comparing it takes, its packed form included.

        Comparing takes more: integers and codes of both sides, and both sides' weights in float32.
        """
        weights = math.prod(self.shape)
        return 13 * weights if self.quantized else 4 * weights + 16 * min(weights, _PIECE_VALUES)

    def grid(self, checkpoint: Checkpoint) -> Grid:
        """The grid of a quantised weight. Raises CheckpointError if experts have several."""
        first, *others = (checkpoint.grid(module) for module in self.stack or (self.origin,))
        if any(other != first for other in others):
            raise CheckpointError(f"the experts of {self.origin} are on several grids; train again")
        return first

    def read_quantized(self, checkpoint: Checkpoint) -> QuantizedTensor:
        """Integers and scales (rows, in) in the file's row order."""
        tensors = [checkpoint.quantized(module) for module in self.stack or (self.origin,)]
        if self.row_order is not None:
            tensors = [tensor.take(self.row_order) for tensor in tensors]
        return QuantizedTensor.join(self.origin, tensors) if self.stack else tensors[0]

    def read_values(self, checkpoint: Checkpoint) -> NDArray[np.float32]:
        """The exact values in the file's row order, float32 (rows, columns).

        Raises CheckpointError for a floating type wider than float32, and for values that are not
        finite.
        """
        if self.quantized:
            return self.read_quantized(checkpoint).dequantize()
        stored = self.values if self.values is not None else checkpoint.floating(self.origin)
        values = self._exact(stored)
        if self.transposed:
            values = values.T
        if self.row_order is not None:
            values = values.take(self.row_order, axis=_row_axis(values.shape))
        return self._shifted(values).reshape(self.rows, self.shape[-1])

    def pieces(self) -> Iterator[slice]:
        """The rows, so many at a time that a core's cache holds them."""
        step = max(1, _PIECE_VALUES // self.shape[-1])
        for start in range(0, self.rows, step):
            yield slice(start, min(start + step, self.rows))

    def read_pieces(self, checkpoint: Checkpoint) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """The same values, some rows at a time, with which rows they are.

        A floating matrix that is stored as it lies in the checkpoint, as embedding and head are, is
        never whole in memory.
        """
        computed = self.quantized or self.values is not None
        moved = self.row_order is not None or self.transposed
        partly = not computed and not moved and len(self.shape) == 2
        whole = None if partly else self.read_values(checkpoint)
        for rows in self.pieces():
            if whole is None:
                yield rows, self._shifted(self._exact(checkpoint.floating(self.origin, rows)))
            else:
                yield rows, whole[rows]

    def _shifted(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values + np.float32(self.offset) if self.offset else values

    def _exact(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """As float32, which holds every value of the types that are allowed."""
        if stored.dtype.name not in ("float32", "float16", "bfloat16"):
            raise CheckpointError(f"{self.origin} is {stored.dtype}; expected a float type")
        values = stored.astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise CheckpointError(f"{self.origin} holds NaN or infinite values; train again")
        return values


def find_sources(checkpoint: Checkpoint, architecture: Architecture) -> list[Source]:
    """Every tensor of the GGUF file, in the order of its blocks.

    Raises:
        ExportRefusedError: a tensor without a name in this architecture, or one that is missing.
        CheckpointError: shapes that do not fit the configuration.
    """
    config = architecture.read(checkpoint.config)
    blocks = positive_int(config, "num_hidden_layers")
    names = gguf.get_tensor_name_map(architecture.arch, blocks)
    known = architecture.known_names(blocks)
    found: list[Source] = []
    unknown: list[str] = []
    for stored in stored_tensors(checkpoint):
        for part, rows in _parts(architecture, config, stored):
            name = names.get_name(part, try_suffixes=(".weight", ".bias"))
            if name not in known:
                unknown.append(part)
            elif name == _HEAD and config.get("tie_word_embeddings"):
                _check_tied(stored)
            else:
                found.append(_source(architecture, name, stored, rows))
    if unknown:
        raise ExportRefusedError(
            f"{len(unknown)} tensors have no name or no use in llama.cpp's {architecture.name}, "
            f"the first {unknown[0]!r}"
        )
    if architecture.head == "stored" and config.get("tie_word_embeddings"):
        found += [replace(source, name=_HEAD) for source in found if source.name == _EMBEDDING]
    found += [
        Source(name, "computed", False, values.shape, values=values)
        for name, values in architecture.computed(config).items()
    ]
    _check_complete(found, architecture, config, blocks)
    return sorted(found, key=lambda source: _file_order(source.name))


def _parts(
    architecture: Architecture, config: Config, stored: Stored
) -> Iterator[tuple[str, Rows | None]]:
    """Names, as Hugging Face would call them, of what a tensor becomes, and the rows of each."""
    for joined, parts in architecture.splits.items():
        if stored.name.removesuffix(".weight").endswith(joined):
            rows = stored.shape[_row_axis(stored.shape)]
            if rows % len(parts):
                raise CheckpointError(f"{stored.name} has {rows} rows, not those of {parts}")
            cuts = np.arange(rows, dtype=np.intp).reshape(len(parts), -1)
            named = (stored.name.replace(joined, part) for part in parts)
            yield from zip(named, cuts, strict=True)
            return
    order = architecture.row_order(config, stored.name.removesuffix(".weight"))
    rows = stored.shape[_row_axis(stored.shape)]
    if order is not None and len(order) != rows:
        raise CheckpointError(
            f"{stored.origin} has {rows} rows where config.json's heads need {len(order)}"
        )
    yield stored.name, order


def _row_axis(shape: tuple[int, ...]) -> int:
    return max(len(shape) - 2, 0)


def _check_tied(stored: Stored) -> None:
    """A tied head is the embedding, which llama.cpp reuses; one that was trained is another."""
    if stored.quantized:
        raise ExportRefusedError(
            f"{stored.origin} was trained although config.json ties it to the embedding; set "
            "tie_word_embeddings to false, or train with it in --keep"
        )


def _source(architecture: Architecture, name: str, stored: Stored, rows: Rows | None) -> Source:
    shape = stored.shape
    transposed = not stored.quantized and stored.name.endswith(architecture.transposed or "\0")
    if transposed:
        shape = shape[::-1]
    if rows is not None:
        cut = _row_axis(shape)
        shape = (*shape[:cut], len(rows), *shape[cut + 1 :])
    is_norm = name.endswith("norm.weight")
    return Source(
        name,
        stored.origin,
        stored.quantized,
        shape,
        stored.stack,
        rows,
        transposed,
        architecture.norm_offset if is_norm else 0.0,
    )


def _check_complete(
    found: list[Source], architecture: Architecture, config: Config, blocks: int
) -> None:
    by_name = {source.name: source for source in found}
    if len(by_name) != len(found):
        raise ExportRefusedError("two tensors of the checkpoint have the same name in GGUF")
    required = architecture.required_names(blocks)
    if not config.get("tie_word_embeddings"):
        required.append(_HEAD)
    missing = [name for name in required if name not in by_name]
    if missing:
        raise ExportRefusedError(
            f"the checkpoint lacks {len(missing)} tensors that llama.cpp needs, the first "
            f"{missing[0]!r}"
        )
    rows, size = by_name[_EMBEDDING].shape[0], positive_int(config, "vocab_size")
    if rows != size:
        raise CheckpointError(f"the embedding has {rows} rows and config.json's vocab_size {size}")


def _file_order(name: str) -> tuple[int, int, str]:
    """Embedding first, then blocks by number, then the rest by name."""
    parts = name.split(".")
    if parts[0] == "blk":
        return 1, int(parts[1]), name
    return (0 if parts[0] == "token_embd" else 2), 0, name
