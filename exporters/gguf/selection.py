"""Choosing the type of each tensor: the smallest exact one, or a refusal that says what to do."""

import numpy as np
from numpy.typing import NDArray

from exporters.gguf.blocks import Block, FloatBlock, float_blocks, integer_blocks
from exporters.gguf.options import Options
from exporters.gguf.rounding import count_rounded, value_blocks
from exporters.gguf.sources import Source
from exporters.gguf.tables import asked_type, lossless_types
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
        ExportRefusedError: the rows do not fit the type asked for.
        CheckpointError: the tensor cannot be read or is not finite.
    """
    blocks = value_blocks()
    asked = asked_type(source, options)
    if len(source.shape) == 1 or "f32" in (options.type, asked):
        return blocks["f32"], ""
    values = source.read_values(checkpoint)
    if asked == "auto":
        lossless = lossless_types(checkpoint, source)
        exact = [name for name in lossless if not count_rounded(blocks[name], values)]
        return blocks[exact[0] if exact else "f32"], ""
    try:
        rounded = count_rounded(blocks[asked], values)
    except ExportRefusedError as error:
        raise ExportRefusedError(f"{source.origin} as {asked}: {error}") from None
    note = f"{rounded} of {values.size} values are rounded, as asked" if rounded else ""
    return blocks[asked], note


def pack_source(checkpoint: Checkpoint, source: Source, type_name: str) -> NDArray[np.uint8]:
    """Read one tensor and pack it as `type_name`: uint8 (rows, row bytes)."""
    integer = integer_blocks().get(type_name) if source.quantized else None
    if integer is None:
        return value_blocks()[type_name].pack(source.read_values(checkpoint))
    tensor = source.read_quantized(checkpoint)
    return integer.pack(tensor.q, tensor.scale)
