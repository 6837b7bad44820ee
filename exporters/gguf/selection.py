"""Choosing the type of each tensor: the smallest exact one, or a refusal that says what to do."""

import numpy as np
from numpy.typing import NDArray

from exporters.gguf.blocks import Block, FloatBlock, float_blocks, integer_blocks
from exporters.gguf.options import Options
from exporters.gguf.sources import Source
from lrqat.checkpoint import Checkpoint, QuantizedTensor
from lrqat.errors import ExportRefusedError
from lrqat.grid import Grid


def exact_types(grid: Grid, in_features: int) -> tuple[str, ...]:
    """Integer types that hold rows of `in_features` weights on `grid`, the smallest first."""
    blocks = integer_blocks().items()
    return tuple(name for name, block in blocks if block.refuses(grid, in_features) is None)


def choose_integer_block(checkpoint: Checkpoint, source: Source, options: Options) -> Block:
    """The type of a quantised projection. Raises ExportRefusedError if none is exact."""
    return choose_for_grid(source.grid(checkpoint), source, options)


def choose_for_grid(grid: Grid, source: Source, options: Options) -> Block:
    """As `choose_integer_block`, of a weight on `grid`."""
    if options.type == "f32":
        return float_blocks()["f32"]
    columns = source.shape[-1]
    blocks, exact = integer_blocks(), exact_types(grid, columns)
    if options.type in exact:
        return blocks[options.type]
    if options.type == "auto" and exact:
        return blocks[exact[0]]
    tried = list(blocks) if options.type == "auto" else [options.type]
    reasons = dict.fromkeys(str(blocks[name].refuses(grid, columns)) for name in tried)
    instead = f"ask for --type auto, which takes {exact[0]}; or " if exact else ""
    raise ExportRefusedError(
        f"{source.origin} ({source.rows} x {columns}, grid {grid.name}) has no exact form: "
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
    if source.is_float32 or options.type == "f32":
        return blocks["f32"], ""
    if options.float_type == "f32":
        return blocks["f32"], ""
    values = source.read_values(checkpoint)
    if options.float_type == "auto":
        return blocks["f32" if count_rounded(blocks["f16"], values) else "f16"], ""
    block = blocks[options.float_type]
    rounded = count_rounded(block, values)
    return block, f"{rounded} of {values.size} values are rounded, as asked" if rounded else ""


def count_rounded(block: FloatBlock, values: NDArray[np.float32]) -> int:
    """How many of `values` (rows, columns) a floating type does not hold exactly."""
    kept = block.unpack(block.pack(values)).view(np.uint32)
    return int((kept != np.ascontiguousarray(values).view(np.uint32)).sum())


def pack_source(checkpoint: Checkpoint, source: Source, type_name: str) -> NDArray[np.uint8]:
    """Read one tensor and pack it as `type_name`: uint8 (rows, row bytes)."""
    if type_name not in integer_blocks():
        return float_blocks()[type_name].pack(source.read_values(checkpoint))
    return pack_quantized(source.read_quantized(checkpoint), type_name)


def pack_quantized(tensor: QuantizedTensor, type_name: str) -> NDArray[np.uint8]:
    """Pack integers and scales as the integer type `type_name`: uint8 (rows, row bytes)."""
    return integer_blocks()[type_name].pack(tensor.q, tensor.scale)


def unpack_values(type_name: str, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The float32 (rows, columns) that rows of bytes of any type stand for, exactly."""
    integer = integer_blocks().get(type_name)
    if integer is None:
        return float_blocks()[type_name].unpack(data)
    q, d = integer.unpack(data)
    blocks = q.reshape(len(q), d.shape[1], -1).astype(np.float32)
    return (blocks * d[:, :, None]).reshape(q.shape)
