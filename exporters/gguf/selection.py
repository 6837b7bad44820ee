"""Choosing the type of each tensor: an exact one, or a refusal that says what to do."""

import numpy as np
from numpy.typing import NDArray

from exporters.activations import activation_grid
from exporters.gguf.blocks import (
    Block,
    FloatBlock,
    IntegerBlock,
    bits_per_weight,
    float_blocks,
    integer_blocks,
)
from exporters.gguf.options import Options
from exporters.gguf.sources import Source
from lrqat.checkpoint import Checkpoint
from lrqat.errors import ExportRefusedError
from lrqat.grid import Grid

_WHOLE_BLOCKS = 256  # weights that are whole blocks of every type


def exact_types(grid: Grid, in_features: int, activations: str | None = None) -> tuple[str, ...]:
    """Integer types that hold rows of `in_features` weights on `grid`, the best first.

    That is the type the grid is named after, then the smallest.

    Args:
        grid: of the weights.
        in_features: weights of a row.
        activations: what the model was trained to round the activations to, or None.
    """
    exact = [
        block
        for block in integer_blocks().values()
        if _refuses(block, grid, in_features, activations) is None
    ]
    best = sorted(exact, key=lambda block: grid.name != block.NAME)
    return tuple(block.NAME for block in best)


def choose_integer_block(
    checkpoint: Checkpoint, source: Source, options: Options
) -> tuple[Block, str]:
    """The type of a quantised weight, and a note if its rows fit only a larger one.

    Raises:
        ExportRefusedError: no type is exact, or the one that was asked for is not.
    """
    if options.type == "f32":
        return float_blocks()["f32"], ""
    grid, columns = checkpoint.grid(source.origin), source.shape[-1]
    activations = activation_grid(checkpoint, source.origin)
    blocks, exact = integer_blocks(), exact_types(grid, columns, activations)
    if options.type in exact:
        return blocks[options.type], ""
    if options.type == "auto" and exact:
        chosen = blocks[exact[0]]
        return chosen, _note(chosen, grid, columns, activations)
    tried = _nearest(grid, columns) if options.type == "auto" else [blocks[options.type]]
    reasons = [str(_refuses(block, grid, columns, activations)) for block in tried]
    raise ExportRefusedError(
        f"{source.origin} ({source.shape[0]} x {columns}, grid {grid.name}) has no exact form: "
        f"{'; '.join(dict.fromkeys(reasons))}. Instead, {_instead(exact)}train with this module in "
        "--keep, so that it stays floating; or export ONNX, where that holds it"
    )


def _refuses(
    block: IntegerBlock, grid: Grid, in_features: int, activations: str | None
) -> str | None:
    if activations not in (None, block.ACTIVATIONS):
        return (
            f"the model was trained with activations on {activations}, and llama.cpp rounds "
            f"them to {block.ACTIVATIONS} when it multiplies with {block.TYPE}"
        )
    return block.refuses(grid, in_features)


def _nearest(grid: Grid, columns: int) -> list[IntegerBlock]:
    """The types that are named when none is exact: the smallest that could hold the grid's bits."""
    bits = grid.bits_per_weight(columns)
    large = [block for block in integer_blocks().values() if bits_per_weight(block) >= bits]
    return large[:3] or list(integer_blocks().values())[-1:]


def _instead(exact: tuple[str, ...]) -> str:
    if not exact:
        return ""
    others = f" ({', '.join(exact[1:])} would be exact too)" if exact[1:] else ""
    return f"ask for --type auto, which takes {exact[0]}{others}; or "


def _note(chosen: IntegerBlock, grid: Grid, columns: int, activations: str | None) -> str:
    best = integer_blocks()[exact_types(grid, _WHOLE_BLOCKS, activations)[0]]
    if bits_per_weight(best) >= bits_per_weight(chosen):
        return ""
    return (
        f"{best.refuses(grid, columns)}: {bits_per_weight(chosen)} bits a weight instead of "
        f"{bits_per_weight(best)}, and as exact"
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
    integer = integer_blocks().get(type_name)
    if integer is None:
        return float_blocks()[type_name].pack(source.read_values(checkpoint))
    tensor = source.read_quantized(checkpoint)
    return integer.pack(integer.encode(tensor.q, tensor.ranges, tensor.grid))
