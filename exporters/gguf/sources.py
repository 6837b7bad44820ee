"""Where each tensor of a GGUF file comes from: names, shapes and row order, and reading one.

One tensor is read at a time, and a large floating matrix in pieces, so memory does not grow with
the model.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from exporters.gguf.architectures import Architecture
from exporters.gguf.config_values import positive_int
from lrqat.checkpoint import Checkpoint, QuantizedTensor
from lrqat.errors import CheckpointError, ExportRefusedError

_PIECE_VALUES = 1 << 18  # 1 MiB as float32, which a core's cache holds


@dataclass(frozen=True, eq=False)
class Source:
    """One tensor of the file to be.

    Attributes:
        name: its name in GGUF.
        origin: module name of a quantised projection, name of a floating tensor, or "computed".
        quantized: whether it is integers and scales.
        shape: its shape, (out, in) or (n,); GGUF lists it in reverse.
        row_order: source row of each row, or None if rows keep their order.
        values: the numbers of a computed tensor, float32.
    """

    name: str
    origin: str
    quantized: bool
    shape: tuple[int, ...]
    row_order: NDArray[np.intp] | None = None
    values: NDArray[np.float32] | None = None

    @property
    def rows(self) -> int:
        """Rows when seen as a matrix: 1 for a vector."""
        return math.prod(self.shape[:-1])

    @property
    def working_bytes(self) -> int:
        """About what packing or comparing it takes, its packed form included."""
        weights = math.prod(self.shape)
        return 6 * weights if self.quantized else 4 * weights + 16 * min(weights, _PIECE_VALUES)

    def read_quantized(self, checkpoint: Checkpoint) -> QuantizedTensor:
        """Integers and scales in the file's row order."""
        tensor = checkpoint.quantized(self.origin)
        return tensor if self.row_order is None else tensor.take(self.row_order)

    def read_values(self, checkpoint: Checkpoint) -> NDArray[np.float32]:
        """The exact values in the file's row order, float32 (rows, columns).

        Raises CheckpointError for a floating type wider than float32, and for values that are not
        finite.
        """
        if self.quantized:
            return self.read_quantized(checkpoint).dequantize()
        stored = self.values if self.values is not None else checkpoint.floating(self.origin)
        values = self._exact(stored)
        if self.row_order is not None:
            values = values[self.row_order]
        return values.reshape(self.rows, self.shape[-1])

    def pieces(self) -> Iterator[slice]:
        """The rows, so many at a time that a core's cache holds them."""
        step = max(1, _PIECE_VALUES // self.shape[-1])
        for start in range(0, self.rows, step):
            yield slice(start, min(start + step, self.rows))

    def read_pieces(self, checkpoint: Checkpoint) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """The same values, some rows at a time, with which rows they are.

        A floating matrix that keeps its order, as embedding and head do, is never whole in memory.
        """
        in_file_order = not self.quantized and self.values is None and self.row_order is None
        partly = in_file_order and len(self.shape) == 2
        whole = None if partly else self.read_values(checkpoint)
        for rows in self.pieces():
            if whole is None:
                yield rows, self._exact(checkpoint.floating(self.origin, rows))
            else:
                yield rows, whole[rows]

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
    config = checkpoint.config
    blocks = positive_int(config, "num_hidden_layers")
    names = gguf.get_tensor_name_map(architecture.arch, blocks)
    found: list[Source] = []
    unknown: list[str] = []
    for origin, quantized in _origins(checkpoint):
        full_name = f"{origin}.weight" if quantized else origin
        name = names.get_name(full_name, try_suffixes=(".weight", ".bias"))
        if name is None:
            unknown.append(full_name)
        elif name == "output.weight" and config.get("tie_word_embeddings"):
            _check_tied(origin, quantized)
        else:
            order = architecture.row_order(config, full_name.removesuffix(".weight"))
            found.append(_source(checkpoint, name, origin, quantized, order))
    if unknown:
        raise ExportRefusedError(
            f"{len(unknown)} tensors have no name in llama.cpp's {architecture.name}, the first "
            f"{unknown[0]!r}"
        )
    found += [
        Source(name, "computed", False, values.shape, values=values)
        for name, values in architecture.computed(config).items()
    ]
    _check_complete(found, architecture.required_names(blocks), config)
    return sorted(found, key=lambda source: _file_order(source.name))


def _origins(checkpoint: Checkpoint) -> list[tuple[str, bool]]:
    quantized = [(name, True) for name in checkpoint.quantized_names]
    return quantized + [(name, False) for name in checkpoint.floating_names]


def _check_tied(origin: str, quantized: bool) -> None:
    """A tied head is the embedding, which llama.cpp reuses; one that was trained is another."""
    if quantized:
        raise ExportRefusedError(
            f"{origin} was trained although config.json ties it to the embedding; set "
            "tie_word_embeddings to false, or train with it in --keep"
        )


def _source(
    checkpoint: Checkpoint,
    name: str,
    origin: str,
    quantized: bool,
    order: NDArray[np.intp] | None,
) -> Source:
    shape = checkpoint.shape(origin)
    if not 1 <= len(shape) <= 2 or math.prod(shape) == 0:
        raise CheckpointError(f"{origin} has shape {shape}; expected a matrix or a vector")
    if order is not None and len(order) != shape[0]:
        raise CheckpointError(
            f"{origin} has {shape[0]} rows where config.json's heads need {len(order)}"
        )
    return Source(name, origin, quantized, shape, order)


def _check_complete(found: list[Source], required: list[str], config: dict[str, object]) -> None:
    by_name = {source.name: source for source in found}
    if len(by_name) != len(found):
        raise ExportRefusedError("two tensors of the checkpoint have the same name in GGUF")
    missing = [name for name in required if name not in by_name]
    if not config.get("tie_word_embeddings") and "output.weight" not in by_name:
        missing.append("output.weight")
    if missing:
        raise ExportRefusedError(
            f"the checkpoint lacks {len(missing)} tensors that llama.cpp needs, the first "
            f"{missing[0]!r}"
        )
    rows, size = by_name["token_embd.weight"].shape[0], positive_int(config, "vocab_size")
    if rows != size:
        raise CheckpointError(f"the embedding has {rows} rows and config.json's vocab_size {size}")


def _file_order(name: str) -> tuple[int, int, str]:
    """Embedding first, then blocks by number, then the rest by name."""
    parts = name.split(".")
    if parts[0] == "blk":
        return 1, int(parts[1]), name
    return (0 if parts[0] == "token_embd" else 2), 0, name
