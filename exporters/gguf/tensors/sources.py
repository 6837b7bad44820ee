"""Where each tensor of a GGUF file comes from: names, shapes and row order, and reading one.

One tensor is read at a time, and a large unquantized matrix in pieces, so memory does not grow with
the model.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from exporters.floating import as_float32
from exporters.gguf.architecture import Architecture, Config, Rows
from exporters.gguf.graph.config_values import positive_int
from exporters.gguf.tensors.stored import Stored, stored_tensors
from lrqat.architectures import find_architecture
from lrqat.checkpoint.reader import Checkpoint, QuantizedTensor
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.errors import CheckpointError, ExportRefusedError
from lrqat.grids.grid import Grid

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
# Matrices whose products upstream keeps in float32: F16 would round what decides on experts.
_FLOAT32 = ("ffn_gate_inp.weight", "position_embd.weight")

# What is worked on at a time: a core's cache holds it with all that is made of it. Floating values
# are few enough for 128 KiB as float32, for which glibc does not ask the system, time and again.
_PIECE_INTEGERS, _PIECE_VALUES = 1 << 18, 1 << 15


@dataclass(frozen=True, eq=False)
class Source:
    """One tensor of the file to be.

    Attributes:
        name: its name in GGUF.
        origin: module name of a quantised weight, or of the stack of experts that `stack` lists;
            name of an unquantized tensor; or "computed".
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
        is_computed = self.values is not None
        return is_computed or len(self.shape) == 1 or self.name.endswith(_FLOAT32)

    @property
    def working_bytes(self) -> int:
        """About what packing or comparing it takes at most.

        Of a trained weight its packed integers and scales are whole in memory, in two orders of
        rows; of an unquantized one all values, where they move. The rest is that of a piece.
        """
        weights = math.prod(self.shape)
        whole = 3 if self.quantized else 0 if self._is_read_partly else 8
        return whole * weights + 32 * min(weights, _PIECE_INTEGERS)

    def grid(self, checkpoint: Checkpoint) -> Grid:
        """The grid of a quantised weight. Raises CheckpointError if experts have several."""
        first, *others = (checkpoint.grid(module) for module in self.stack or (self.origin,))
        if any(other != first for other in others):
            raise CheckpointError(f"the experts of {self.origin} are on several grids; train again")
        return first

    def scales(self, checkpoint: Checkpoint) -> Iterator[StoredScales]:
        """The scales of a quantised weight, and what goes with them; of one expert at a time."""
        return (checkpoint.scales(module) for module in self.stack or (self.origin,))

    def quantized_pieces(self, checkpoint: Checkpoint) -> Iterator[tuple[slice, QuantizedTensor]]:
        """Integers and scales in the file's row order, some rows at a time; with which they are."""
        first = 0
        for module in self.stack or (self.origin,):
            packed = checkpoint.packed(module)
            if self.row_order is not None:
                packed = packed.take(self.row_order)
            rows = len(packed.words)
            for piece in _pieces(slice(0, rows), packed.columns, _PIECE_INTEGERS):
                yield slice(first + piece.start, first + piece.stop), packed.take(piece).unpack()
            first += rows

    def read_values(self, checkpoint: Checkpoint) -> NDArray[np.float32]:
        """The exact values in the file's row order, float32 (rows, columns).

        Raises CheckpointError for a floating type wider than float32, and for values that are not
        finite.
        """
        if self.quantized:
            return np.concatenate([values for _, values in self.read_pieces(checkpoint)])
        stored = self.values if self.values is not None else checkpoint.floating(self.origin)
        values = self._exact(stored)
        if self.transposed:
            values = values.T
        if self.row_order is not None:
            values = values.take(self.row_order, axis=_row_axis(values.shape))
        return self._shifted(values).reshape(self.rows, self.shape[-1])

    def spans(self, values: int) -> list[slice]:
        """The rows in spans of some `values`, or all as one where they cannot be read apart."""
        whole = [slice(0, self.rows)]
        return list(_pieces(whole[0], self.shape[-1], values)) if self._is_read_partly else whole

    def read_pieces(self, checkpoint: Checkpoint) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """The same values, some rows at a time, with which rows they are."""
        if self.quantized:
            for rows, tensor in self.quantized_pieces(checkpoint):
                yield rows, tensor.dequantize()
        else:
            yield from self.floating_pieces(checkpoint, slice(0, self.rows))

    def floating_pieces(
        self, checkpoint: Checkpoint, span: slice
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Values of an unquantized tensor in the rows of `span`, some rows at a time.

        A matrix that is stored as it lies in the checkpoint, as embedding and head are, is never
        whole in memory.
        """
        whole = None if self._is_read_partly else self.read_values(checkpoint)
        for rows in _pieces(span, self.shape[-1], _PIECE_VALUES):
            if whole is None:
                yield rows, self._shifted(self._exact(checkpoint.floating(self.origin, rows)))
            else:
                yield rows, whole[rows]

    @property
    def _is_read_partly(self) -> bool:
        is_stored_so = self.values is None and self.row_order is None and not self.transposed
        return is_stored_so and len(self.shape) == 2

    def _shifted(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values + np.float32(self.offset) if self.offset else values

    def _exact(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """As float32, which holds every value of the types that are allowed."""
        return as_float32(self.origin, stored)


def _pieces(rows: slice, columns: int, most: int) -> Iterator[slice]:
    """Those rows of a matrix, at most so many elements at a time, and at least one row."""
    step = max(1, most // columns)
    for start in range(rows.start, rows.stop, step):
        yield slice(start, min(start + step, rows.stop))


def find_sources(checkpoint: Checkpoint, architecture: Architecture) -> list[Source]:
    """Every tensor of the GGUF file, in the order of its blocks.

    Raises:
        ExportRefusedError: a tensor without a name in this architecture, or one that is missing.
        CheckpointError: shapes that do not fit the configuration.
    """
    config = architecture.read(checkpoint.config)
    particular = find_architecture(checkpoint.config.get("model_type"))
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
            else:
                transposed = not stored.quantized and particular.is_transposed(stored.name)
                found.append(_source(architecture, name, stored, rows, transposed))
    if unknown:
        raise ExportRefusedError(
            f"{len(unknown)} tensors have no name or no use in llama.cpp's {architecture.name}, "
            f"the first {unknown[0]!r}"
        )
    has_head = any(source.name == HEAD for source in found)
    if architecture.head == "stored" and not has_head and config.get("tie_word_embeddings"):
        found += [replace(source, name=HEAD) for source in found if source.name == EMBEDDING]
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


def _source(
    architecture: Architecture, name: str, stored: Stored, rows: Rows | None, transposed: bool
) -> Source:
    shape = stored.shape[::-1] if transposed else stored.shape
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
        required.append(HEAD)
    missing = [name for name in required if name not in by_name]
    if missing:
        raise ExportRefusedError(
            f"the checkpoint lacks {len(missing)} tensors that llama.cpp needs, the first "
            f"{missing[0]!r}"
        )
    rows, size = by_name[EMBEDDING].shape[0], positive_int(config, "vocab_size")
    if rows != size:
        raise CheckpointError(f"the embedding has {rows} rows and config.json's vocab_size {size}")


def _file_order(name: str) -> tuple[int, int, str]:
    """Embedding first, then blocks by number, then the rest by name."""
    parts = name.split(".")
    if parts[0] == "blk":
        return 1, int(parts[1]), name
    return (0 if parts[0] == "token_embd" else 2), 0, name
