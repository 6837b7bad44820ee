"""What the integer blocks share: how rows of a grid are cut into blocks of 32, 64 or 256 weights.

A ggml row is a run of equal blocks, each with its own fp16 scale `d`. A grid whose group is a
multiple of the block, or the whole row, is held exactly by repeating its scale in every block:

    scale (out, groups)  ->  d (out, in / block),    d[o, b] = scale[o, b * block // group]

Source: ggml/src/ggml-common.h (block structs), ggml/src/gguf.cpp (rows are whole blocks).
"""

import numpy as np
from numpy.typing import NDArray

from lrqat.errors import ExportRefusedError
from lrqat.grid import FloatScale, Grid


def refuses_blocks(
    type_name: str, block: int, q_min: int, q_max: int, grid: Grid, in_features: int
) -> str | None:
    """Why blocks of `block` integers q_min..q_max with an fp16 scale cannot hold a row, or None."""
    if not grid.symmetric:
        offset = "minima" if grid.minimum else "zero-points"
        return f"{grid.name} has {offset} and {type_name} has none"
    if grid.q_min < q_min or grid.q_max > q_max:
        return (
            f"{grid.name}'s integers {grid.q_min}..{grid.q_max} leave "
            f"{type_name}'s {q_min}..{q_max}"
        )
    if grid.scale != FloatScale("float16"):
        kind = grid.scale.dtype if isinstance(grid.scale, FloatScale) else "not plain numbers"
        return f"{grid.name}'s scales are {kind} and {type_name} stores float16"
    if in_features % block:
        return f"rows of {in_features} weights do not divide into {type_name}'s blocks of {block}"
    if grid.group_size is not None and grid.group_size % block:
        return (
            f"{grid.name} has a scale for every {grid.group_size} weights and "
            f"{type_name} only one for {block}"
        )
    return None


def block_scales(scale: NDArray[np.float32], blocks: int) -> NDArray[np.float16]:
    """Repeat `scale` float32 (out, groups) to the fp16 `d` (out, blocks) of a row's blocks.

    Raises:
        ExportRefusedError: a scale is not exact in fp16, or the groups are not whole blocks.
    """
    groups = scale.shape[1]
    if groups == 0 or blocks % groups:
        raise ExportRefusedError(f"{groups} scales do not divide evenly over {blocks} blocks")
    with np.errstate(over="ignore"):
        d = scale.astype(np.float16)
    inexact = d.astype(np.float32) != scale
    if inexact.any():
        raise ExportRefusedError(
            f"{int(inexact.sum())} scales are not exact in float16, the first is "
            f"{scale[inexact][0]}; train on a grid whose scales are float16"
        )
    return d.repeat(blocks // groups, axis=1)


def join_blocks(d: NDArray[np.float16], codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put `d` (out, blocks) before the bytes (out, blocks, n) of each block; rows of bytes."""
    rows, blocks = d.shape
    octets = np.ascontiguousarray(d, "<f2").view(np.uint8).reshape(rows, blocks, 2)
    return np.concatenate([octets, codes], axis=2).reshape(rows, -1)


def split_blocks(
    data: NDArray[np.uint8], block_bytes: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Undo `join_blocks`: rows of bytes to `d` as float32 (out, blocks) and (out, blocks, n)."""
    rows = data.shape[0]
    blocks = np.ascontiguousarray(data).reshape(rows, data.shape[1] // block_bytes, block_bytes)
    d = np.ascontiguousarray(blocks[:, :, :2]).view("<f2")[:, :, 0].astype(np.float32)
    return d, blocks[:, :, 2:]
