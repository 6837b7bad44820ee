"""Whether a block type holds every weight that a grid can make, told from the grid alone.

(But for one thing: `refuses_minima` looks at the scales.)

One function for each form that a type's weights have; each returns a reason, or None if it holds:

    scaled             d * q                     Q4_0 Q5_0 Q8_0 Q2_0 TQ1_0 TQ2_0
    codebook           d * level                 IQ4_NL MXFP4 NVFP4 Q1_0
    offset             d * q + m                 Q4_1 Q5_1
    two_level          d * sub * q               Q3_K Q6_K
    two_level_codebook d * sub * level           IQ4_XS
    two_level_offset   d * sub * q - dmin * m    Q2_K Q4_K Q5_K
    two_level_centred  the same around zero      Q2_K

`encoding` says how a grid of another form is put into one of these without changing a weight.
"""

from collections.abc import Collection

import numpy as np

from exporters.gguf.layout.ggml_types import GgmlType
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.grids.grid import (
    Float8Scale,
    FloatScale,
    Grid,
    PowerOfTwoScale,
    ScaleCodec,
    TwoLevelScale,
)

_HALF = FloatScale("float16")


def refuses_scaled(ggml: GgmlType, low: int, high: int, grid: Grid, in_features: int) -> str | None:
    """For integers low..high with a float16 scale for each block."""
    return (
        _minima(ggml, grid)
        or _integers(ggml, low, high, grid)
        or _codec(ggml, "scales", grid.scale, _HALF, grid)
        or _blocks(ggml, grid, in_features)
    )


def refuses_codebook(
    ggml: GgmlType, levels: Collection[int], stored: ScaleCodec, grid: Grid, in_features: int,
    part: int | None = None,
) -> str | None:  # fmt: skip
    """For certain levels with a scale of the form `stored` for each block, or `part` of it."""
    return (
        _codebook(ggml, levels, grid)
        or _minima(ggml, grid)
        or _codec(ggml, "scales", grid.scale, stored, grid)
        or _rows(ggml, in_features)
        or _groups(ggml, part or ggml.weights, grid)
    )


def refuses_offset(ggml: GgmlType, most: int, grid: Grid, in_features: int) -> str | None:
    """For codes 0..most with a float16 scale and a float16 minimum for each block."""
    if grid.zero_point:
        return f"{grid.name}'s zero-points times its scales do not fit {ggml}'s float16 minima"
    return (
        _codes(ggml, most, grid)
        or _codec(ggml, "scales", grid.scale, _HALF, grid)
        or (grid.minimum and _codec(ggml, "minima", grid.minimum, _HALF, grid))
        or _blocks(ggml, grid, in_features)
    )


def refuses_minima(ggml: GgmlType, scales: StoredScales, grid: Grid) -> str | None:
    """For grids without minima in a type that has float16 ones: the scales that `scales` has.

    What moves q_min to code 0 is scale * q_min, a power of two times the scale: only its size can
    keep it from being a float16.
    """
    largest = np.abs(scales.scale).max(initial=0)
    if grid.minimum or largest * -grid.q_min <= np.finfo(np.float16).max:
        return None
    return f"{grid.name}'s scale {largest:g} times {grid.q_min} leaves {ggml}'s float16 minima"


def refuses_two_level(
    ggml: GgmlType, part: int, low: int, high: int, scales: TwoLevelScale, grid: Grid,
    in_features: int,
) -> str | None:  # fmt: skip
    """For integers low..high with a sub-scale for every `part` weights and a float16 for all."""
    return (
        _minima(ggml, grid)
        or _integers(ggml, low, high, grid)
        or _levels(ggml, "scales", part, grid.scale, scales, grid)
        or _rows(ggml, in_features)
    )


def refuses_two_level_codebook(
    ggml: GgmlType, part: int, levels: Collection[int], scales: TwoLevelScale, grid: Grid,
    in_features: int,
) -> str | None:  # fmt: skip
    """For certain levels with a sub-scale for every `part` weights and a float16 for all."""
    return (
        _codebook(ggml, levels, grid)
        or _minima(ggml, grid)
        or _levels(ggml, "scales", part, grid.scale, scales, grid)
        or _rows(ggml, in_features)
    )


def refuses_two_level_offset(
    ggml: GgmlType, part: int, most: int, scales: TwoLevelScale, minima: TwoLevelScale, grid: Grid,
    in_features: int,
) -> str | None:  # fmt: skip
    """For codes 0..most with sub-scales and sub-minima for every `part` weights."""
    if isinstance(grid.scale, TwoLevelScale) and grid.minimum is None:
        return f"{grid.name} has two levels of scales and no minima, and {ggml} has both"
    return (
        _codes(ggml, most, grid)
        or _levels(ggml, "scales", part, grid.scale, scales, grid)
        or (grid.minimum and _levels(ggml, "minima", part, grid.minimum, minima, grid))
        or _rows(ggml, in_features)
    )


def refuses_two_level_centred(
    ggml: GgmlType, part: int, most: int, scales: TwoLevelScale, grid: Grid, in_features: int
) -> str | None:
    """For a grid that `is_centred`, in a type that has minima: dmin is `most` times a super-scale.

    Args:
        ggml: the type.
        part: weights that share a sub-scale.
        most: the largest code.
        scales: the sub-scales, and the sub-minima, which are the same.
        grid: the grid.
        in_features: weights of a row.
    """
    codec = grid.scale
    if not isinstance(codec, TwoLevelScale) or codec.times < most:
        return f"{most} times a scale of {grid.name} does not fit {ggml}'s float16 minima"
    return _levels(ggml, "scales", part, codec, scales, grid) or _rows(ggml, in_features)


def is_centred(grid: Grid, most: int) -> bool:
    """Whether the levels are codes 0..most, moved around zero and doubled: -most, 2 - most ..."""
    return grid.levels == tuple(range(-most, most + 1, 2))


def _minima(ggml: GgmlType, grid: Grid) -> str | None:
    return f"{grid.name} has minima and {ggml} has none" if grid.minimum else None


def _codebook(ggml: GgmlType, levels: Collection[int], grid: Grid) -> str | None:
    needed = grid.levels or range(grid.q_min, grid.q_max + 1)
    if grid.zero_point or not set(needed) <= set(levels):
        return f"{grid.name}'s integers are not {ggml}'s levels"
    return None


def _integers(ggml: GgmlType, low: int, high: int, grid: Grid) -> str | None:
    least, most, what = grid.q_min, grid.q_max, "integers"
    if grid.zero_point:
        least, most, what = least - most, most - least, "integers less their zero-points,"
    if low <= least and most <= high:
        return None
    return f"{grid.name}'s {what} {least}..{most} leave {ggml}'s {low}..{high}"


def _codes(ggml: GgmlType, most: int, grid: Grid) -> str | None:
    """Integers as codes from 0: those of grids without minima are shifted by a minimum."""
    if grid.q_max - grid.q_min <= most:
        return None
    return f"{grid.name}'s {grid.q_max - grid.q_min + 1} integers are more than {ggml}'s {most + 1}"


def _codec(
    ggml: GgmlType, what: str, codec: ScaleCodec, stored: ScaleCodec, grid: Grid
) -> str | None:
    if codec == stored:
        return None
    return f"{grid.name}'s {what} are {_described(codec)} and {ggml}'s {_described(stored)}"


def _described(codec: ScaleCodec) -> str:
    if isinstance(codec, FloatScale):
        return codec.dtype
    return {
        PowerOfTwoScale: "powers of two",
        Float8Scale: "8-bit floats",
        TwoLevelScale: "products of two levels",
    }[type(codec)]


def _levels(
    ggml: GgmlType, what: str, part: int, codec: ScaleCodec, stored: TwoLevelScale, grid: Grid
) -> str | None:
    """Two levels in two levels, or a float16 for all of them."""
    if not isinstance(codec, TwoLevelScale):
        return _codec(ggml, what, codec, _HALF, grid) or _groups(ggml, ggml.weights, grid)
    if codec.super_block != ggml.weights:
        return f"{grid.name} has a float16 for every {codec.super_block} weights, {ggml} for 256"
    if codec.least < stored.least or codec.most > stored.most:
        return (
            f"{grid.name}'s sub-{what} {codec.least}..{codec.most} leave {ggml}'s "
            f"{stored.least}..{stored.most}"
        )
    return _groups(ggml, part, grid)


def _blocks(ggml: GgmlType, grid: Grid, in_features: int) -> str | None:
    return _rows(ggml, in_features) or _groups(ggml, ggml.weights, grid)


def _rows(ggml: GgmlType, in_features: int) -> str | None:
    if in_features % ggml.weights == 0:
        return None
    return f"rows of {in_features} weights do not divide into {ggml}'s blocks of {ggml.weights}"


def _groups(ggml: GgmlType, size: int, grid: Grid) -> str | None:
    if grid.group_size is None or grid.group_size % size == 0:
        return None
    return (
        f"{grid.name} has a scale for every {grid.group_size} weights, {ggml} only one for {size}"
    )
