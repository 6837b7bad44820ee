"""Choosing the type of each tensor: an exact one, or a refusal that says what to do."""

import math

from exporters.gguf.blocks import (
    Block,
    IntegerBlock,
    ScaleParts,
    ValueBlock,
    bits_per_weight,
    float_blocks,
    integer_blocks,
    refuses_scales,
)
from exporters.gguf.options import Options
from exporters.gguf.tensors.embedding_and_head import asked_type, lossless_types
from exporters.gguf.tensors.rounded_values import ROUNDED, value_blocks
from exporters.gguf.tensors.sources import Source
from exporters.planning import activation_grid
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import ExportRefusedError
from lrqat.grids.grid import Grid

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
    return choose_for_grid(
        source.grid(checkpoint),
        source,
        options,
        lambda: source.scales(checkpoint),
        activation_grid(checkpoint, source.origin),
    )


def choose_for_grid(
    grid: Grid, source: Source, options: Options, scales: ScaleParts, activations: str | None = None
) -> tuple[Block, str]:
    """As `choose_integer_block`, of a weight on `grid`.

    Args:
        grid: of the weight.
        source: its name and shape.
        options: the user's.
        scales: gives its scales; called for the few types that the grid alone does not decide on.
        activations: as in `exact_types`.
    """
    if options.type == "f32":
        return float_blocks()["f32"], ""
    columns, blocks, is_auto = source.shape[-1], integer_blocks(), options.type == "auto"

    def holds(name: str) -> bool:
        return not refuses_scales(blocks[name], scales, grid)

    exact = exact_types(grid, columns, activations)
    chosen = next((n for n in exact if (is_auto or n == options.type) and holds(n)), None)
    if chosen:
        note = _note(blocks[chosen], grid, columns, activations) if is_auto else ""
        return blocks[chosen], note
    exact = tuple(filter(holds, exact))
    tried = _nearest(grid, columns, activations) if is_auto else [blocks[options.type]]
    reasons = [
        str(_refuses(block, grid, columns, activations) or refuses_scales(block, scales, grid))
        for block in tried
    ]
    raise ExportRefusedError(
        f"{source.origin} ({source.rows} x {columns}, grid {grid.name}) has no exact form: "
        f"{'; '.join(dict.fromkeys(reasons))}. Instead, {_instead(exact)}train with this module in "
        "--keep, which leaves it unquantized; or export ONNX, where that holds it"
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


def _nearest(grid: Grid, columns: int, activations: str | None) -> list[IntegerBlock]:
    """The types that are named when none is exact.

    The best of those that hold other rows of the grid; if there are none, the smallest that could
    hold its bits.
    """
    others = exact_types(grid, _WHOLE_BLOCKS, activations)
    if others:
        return [integer_blocks()[name] for name in others[:3]]
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
        f"{best.refuses(grid, columns)}: {bits_per_weight(chosen)} bits per weight instead of "
        f"{bits_per_weight(best)}, and as exact"
    )


def choose_float_block(
    checkpoint: Checkpoint, source: Source, options: Options, changed: dict[str, int]
) -> tuple[ValueBlock, str]:
    """The type of an unquantized matrix, and a note if its values are rounded.

    Args:
        checkpoint: whose matrix it is.
        source: the matrix.
        options: the user's.
        changed: values that change by type, see `embedding_and_head.changed_values`.

    Raises:
        ExportRefusedError: the rows do not fit the type asked for.
    """
    blocks, asked = value_blocks(), asked_type(source, options)
    if asked == "auto":
        lossless = (name for name in lossless_types(checkpoint, source) if not changed[name])
        return blocks[next(lossless, "f32")], ""
    if asked in ROUNDED:
        try:
            ROUNDED[asked].check_rows(source.shape[-1])
        except ExportRefusedError as error:
            raise ExportRefusedError(f"{source.origin} as {asked}: {error}") from None
        return blocks[asked], "rounded, as asked"
    size, rounded = math.prod(source.shape), changed[asked]
    note = f"{rounded} of {size} values are rounded, as asked" if rounded else ""
    return blocks[asked], note
