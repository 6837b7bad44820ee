"""Choosing the type of each tensor: the smallest exact one, or a refusal that says what to do."""

import math

import numpy as np
from numpy.typing import NDArray

from exporters.gguf.blocks import Block, FloatBlock, float_blocks, integer_blocks, row_bytes
from exporters.gguf.options import Options
from exporters.gguf.sources import Source
from lrqat.checkpoint import Checkpoint
from lrqat.errors import ExportRefusedError
from lrqat.grid import Grid


def exact_types(grid: Grid, in_features: int) -> tuple[str, ...]:
    """Integer types that hold rows of `in_features` weights on `grid`, the smallest first."""
    blocks = integer_blocks().items()
    return tuple(name for name, block in blocks if block.refuses(grid, in_features) is None)


def choose_integer_block(checkpoint: Checkpoint, source: Source, options: Options) -> Block:
    """The type of a quantised projection. Raises ExportRefusedError if none is exact."""
    if options.type == "f32":
        return float_blocks()["f32"]
    grid, columns = checkpoint.grid(source.origin), source.shape[1]
    blocks, exact = integer_blocks(), exact_types(grid, columns)
    if options.type in exact:
        return blocks[options.type]
    if options.type == "auto" and exact:
        return blocks[exact[0]]
    tried = list(blocks) if options.type == "auto" else [options.type]
    reasons = dict.fromkeys(str(blocks[name].refuses(grid, columns)) for name in tried)
    instead = f"ask for --type auto, which takes {exact[0]}; or " if exact else ""
    raise ExportRefusedError(
        f"{source.origin} ({source.shape[0]} x {columns}, grid {grid.name}) has no exact form: "
        f"{'; '.join(reasons)}. Instead, {instead}train with this module in --keep, "
        "so that it stays floating; or export ONNX, which holds it"
    )


def choose_float_block(
    checkpoint: Checkpoint, source: Source, options: Options
) -> tuple[FloatBlock, str]:
    """The type of a floating tensor, and a note if its values are rounded.

    Raises:
        CheckpointError: the tensor cannot be read or is not finite.
    """
    blocks = float_blocks()
    if len(source.shape) == 1 or options.type == "f32":
        return blocks["f32"], ""
    if options.float_type == "f32":
        return blocks["f32"], ""
    pieces = (values for _, values in source.read_pieces(checkpoint))
    if options.float_type == "auto":
        inexact = any(count_rounded(blocks["f16"], values) for values in pieces)
        return blocks["f32" if inexact else "f16"], ""
    block = blocks[options.float_type]
    rounded = sum(count_rounded(block, values) for values in pieces)
    size = math.prod(source.shape)
    return block, f"{rounded} of {size} values are rounded, as asked" if rounded else ""


def count_rounded(block: FloatBlock, values: NDArray[np.float32]) -> int:
    """How many of `values` (rows, columns) a floating type does not hold exactly."""
    kept = block.unpack(block.pack(values)).view(np.uint32)
    return int(np.count_nonzero(kept != np.ascontiguousarray(values).view(np.uint32)))


def pack_source(checkpoint: Checkpoint, source: Source, type_name: str) -> NDArray[np.uint8]:
    """Read one tensor and pack it as `type_name`: uint8 (rows, row bytes)."""
    integer = integer_blocks().get(type_name)
    block: Block = integer or float_blocks()[type_name]
    packed = np.empty((source.rows, row_bytes(block, source.shape[-1])), np.uint8)
    if integer is None:
        for rows, values in source.read_pieces(checkpoint):
            packed[rows] = float_blocks()[type_name].pack(values)
        return packed
    tensor = source.read_quantized(checkpoint)
    for rows in source.pieces():
        packed[rows] = integer.pack(tensor.q[rows], tensor.scale[rows])
    return packed
