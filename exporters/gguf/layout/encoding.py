"""From a checkpoint's integers and scales to the numbers of a block type, exactly or not at all.

A grid may have fewer numbers than a type stores, or others. Where the weights come out the same,
the grid's numbers are put in the type's form:

    a scale for a multiple of the block, or a whole row    is repeated in every block
    a plain scale where the type has two levels            d = scale, every sub-scale 1
    a zero-point where the type has no minimum             goes into the integers, q - zero_point
    a zero-point where it has two levels of minima         dmin = scale, sub-minimum = its code
    no minimum where the type has one                      the minimum that moves 0 to its code
    odd levels -3..3 where it has two levels of minima     code = (q + 3) / 2, dmin = 3/2 d

No weight changes: the numbers multiply to the same float32. `exactness` tells from the grid alone
whether all of them can be put so; here each number is checked once more, so that nothing is ever
rounded and no integer overflows. One function for each form of `exactness` that several types have:
`encode_scaled`, `encode_offset`, `encode_two_level`, `encode_two_level_codebook`,
`encode_two_level_offset`, `encode_two_level_centred`.
"""

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from exporters.gguf.layout.fields import Fields
from exporters.gguf.layout.ggml_types import GgmlType
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.errors import ExportRefusedError
from lrqat.grids.grid import Grid, TwoLevelScale

TwoLevels = tuple[NDArray[np.float16], NDArray[np.int8]]


def encode_scaled(
    ggml: GgmlType, low: int, high: int, q: NDArray[np.int8], scales: StoredScales
) -> Fields:
    """The numbers of a type with integers low..high, stored from 0, and a scale for each block.

    Args:
        ggml: the type.
        low: the integer of code 0.
        high: the largest integer.
        q: int8 (out, in).
        scales: what goes with them.

    Raises:
        ExportRefusedError: a number that is not exact.
    """
    found = codes(q, low, high, ggml, scales.zero_point)
    return Fields(found, {"d": block_scales(scales, ggml.blocks(q.shape[1]))})


def encode_offset(
    ggml: GgmlType, most: int, q: NDArray[np.int8], scales: StoredScales, grid: Grid
) -> Fields:
    """The same of one with codes 0..most, and a scale and a minimum for each block."""
    blocks = ggml.blocks(q.shape[1])
    d, m = block_scales(scales, blocks), block_minima(scales, grid, blocks)
    return Fields(codes(q, grid.q_min, grid.q_min + most, ggml), {"d": d, "m": m})


def encode_two_level(
    ggml: GgmlType, part: int, low: int, high: int, stored: TwoLevelScale, q: NDArray[np.int8],
    scales: StoredScales,
) -> Fields:  # fmt: skip
    """As `encode_scaled`, of a type with a sub-scale, one of `stored`, for every `part` weights."""
    d, sub_scales = _two_levels(scales, ggml, q.shape[1], part, stored)
    return Fields(codes(q, low, high, ggml, scales.zero_point), {"d": d, "scales": sub_scales})


def encode_two_level_codebook(
    ggml: GgmlType, part: int, levels: NDArray[np.int8], stored: TwoLevelScale,
    q: NDArray[np.int8], scales: StoredScales,
) -> Fields:  # fmt: skip
    """As `encode_two_level`, of a type whose codes are the places of q in `levels`."""
    d, sub_scales = _two_levels(scales, ggml, q.shape[1], part, stored)
    return Fields(indices(q, levels, ggml), {"d": d, "scales": sub_scales})


def encode_two_level_offset(
    ggml: GgmlType, part: int, most: int, stored: TwoLevelScale, q: NDArray[np.int8],
    scales: StoredScales, grid: Grid,
) -> Fields:  # fmt: skip
    """As `encode_offset`, of a type with sub-scales and sub-minima, all of `stored`."""
    d, sub_scales = _two_levels(scales, ggml, q.shape[1], part, stored)
    dmin, mins = _two_level_minima(scales, grid, ggml, q.shape[1], part, stored)
    found = codes(q, grid.q_min, grid.q_min + most, ggml)
    return Fields(found, {"d": d, "dmin": dmin, "scales": sub_scales, "mins": mins})


def encode_two_level_centred(
    ggml: GgmlType, part: int, most: int, stored: TwoLevelScale, q: NDArray[np.int8],
    scales: StoredScales,
) -> Fields:  # fmt: skip
    """As `encode_two_level_offset`, of odd levels -most..most: scale * q = 2 s code - most s."""
    super_scale, sub = _two_levels(scales, ggml, q.shape[1], part, stored)
    d, dmin = (half(np.float32(n) * super_scale.astype(np.float32)) for n in (2, most))
    found = indices(q, np.arange(-most, most + 1, 2, dtype=np.int8), ggml)
    return Fields(found, {"d": d, "dmin": dmin, "scales": sub, "mins": sub})


def integers(
    q: NDArray[np.int8],
    low: int,
    high: int,
    ggml: GgmlType,
    zero_point: NDArray[np.int8] | None = None,
) -> NDArray[np.int8]:
    """The integers q - zero_point, (out, in). Raises ExportRefusedError outside low..high."""
    if zero_point is None:
        _check(q, low, high, "integers", ggml)
        return q
    found = q.astype(np.int16)
    found -= repeated(zero_point, q.shape[1])
    _check(found, low, high, "integers", ggml)
    return found.astype(np.int8)


def codes(
    q: NDArray[np.int8],
    low: int,
    high: int,
    ggml: GgmlType,
    zero_point: NDArray[np.int8] | None = None,
) -> NDArray[np.uint8]:
    """The same as codes uint8 (out, in), 0 for `low`."""
    # Wraps in uint8, which is what we want: -8 - -8 is 248 - 248.
    return integers(q, low, high, ggml, zero_point).view(np.uint8) - np.uint8(low % 256)


def indices(q: NDArray[np.int8], levels: NDArray[np.int8], ggml: GgmlType) -> NDArray[np.uint8]:
    """The place of each of `q` (out, in) in `levels`, the first where there are two.

    Raises:
        ExportRefusedError: an integer that is no level.
    """
    places = np.full(256, 255, np.uint8)
    places[levels[::-1].view(np.uint8)] = np.arange(len(levels), dtype=np.uint8)[::-1]
    found = places.take(q.view(np.uint8))
    if (found == 255).any():
        raise ExportRefusedError(f"{q[found == 255][0]} is none of {ggml}'s levels")
    return found


def exponents(scales: StoredScales, ggml: GgmlType, low: int, high: int) -> NDArray[np.int32]:
    """The binary logarithm of every scale, int32 (out, groups).

    Raises:
        ExportRefusedError: a scale that is no power of two, or none of 2^low..2^high.
    """
    fraction, found = np.frexp(scales.scale)
    if (fraction != 0.5).any():
        raise ExportRefusedError(f"scales that are no powers of two do not fit {ggml}")
    found = found.astype(np.int32) - 1
    _check(found, low, high, "exponents", ggml)
    return found


def tensor_scale(scales: StoredScales, ggml: GgmlType) -> np.float32:
    """The power of two that all scales share. Raises ExportRefusedError if there is none."""
    found = scales.tensor_scale
    if found is None or (found != found[0]).any():
        raise ExportRefusedError(f"scales without one power of two for all do not fit {ggml}")
    return np.float32(found[0, 0])


def float8(scales: StoredScales, ggml: GgmlType) -> NDArray[np.uint8]:
    """The scales without it as UE4M3, uint8 (out, groups).

    Raises:
        ExportRefusedError: a scale that is none, or zero.
    """
    exact = scales.scale / tensor_scale(scales, ggml)
    found = exact.astype(ml_dtypes.float8_e4m3fn)
    wrong = (found.astype(np.float32) != exact) | ~(exact > 0)
    if wrong.any():
        raise ExportRefusedError(f"scales that are no 8-bit floats do not fit {ggml}")
    return found.view(np.uint8)


def half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """`values` as float16. Raises ExportRefusedError if one is not exact."""
    with np.errstate(over="ignore"):
        found = values.astype(np.float16)
    inexact = found.astype(np.float32) != values
    if inexact.any():
        raise ExportRefusedError(
            f"{int(inexact.sum())} scales or minima are not exact in float16, the first is "
            f"{values[inexact][0]}; train on a grid whose scales are float16"
        )
    return found


def repeated(numbers: NDArray[Any], count: int) -> NDArray[Any]:
    """Numbers (out, groups) repeated to (out, count), in runs of equal length.

    Raises:
        ExportRefusedError: the groups do not divide evenly.
    """
    groups = numbers.shape[1]
    if groups == 0 or count % groups:
        raise ExportRefusedError(f"{groups} scales do not divide evenly over {count} blocks")
    return numbers if count == groups else numbers.repeat(count // groups, axis=1)


def block_scales(scales: StoredScales, blocks: int) -> NDArray[np.float16]:
    """The scale of every block, float16 (out, blocks)."""
    scale: NDArray[np.float16] = repeated(half(scales.scale), blocks)
    return scale


def block_minima(scales: StoredScales, grid: Grid, blocks: int) -> NDArray[np.float16]:
    """What every block adds, float16 (out, blocks): less the minimum, or scale * q_min."""
    added = scales.scale * np.float32(grid.q_min) if scales.minimum is None else -scales.minimum
    minima: NDArray[np.float16] = repeated(half(added), blocks)
    return minima


def _two_levels(
    scales: StoredScales, ggml: GgmlType, columns: int, part: int, stored: TwoLevelScale
) -> TwoLevels:
    """The float16 d (out, super-blocks) and int8 sub-scales (out, columns / part)."""
    blocks, parts = ggml.blocks(columns), columns // part
    if scales.super_scale is None or scales.sub_scale is None:
        d = block_scales(scales, blocks)
        return d, np.ones((len(d), parts), np.int8)
    _check(scales.sub_scale, stored.least, stored.most, "sub-scales", ggml)
    return half(scales.super_scale), repeated(scales.sub_scale, parts)


def _two_level_minima(
    scales: StoredScales, grid: Grid, ggml: GgmlType, columns: int, part: int, stored: TwoLevelScale
) -> TwoLevels:
    """The float16 dmin (out, super-blocks) and int8 sub-minima (out, columns / part).

    A grid without minima gets dmin = scale and the code of 0, or of its zero-point: the code is
    q - q_min, and scale * (q - zero_point) = scale * (q - q_min) - scale * (zero_point - q_min).
    """
    blocks, parts = ggml.blocks(columns), columns // part
    if scales.super_minimum is not None and scales.sub_minimum is not None:
        dmin, sub = half(scales.super_minimum), scales.sub_minimum
    else:
        dmin = block_scales(scales, blocks)
        zero = np.zeros_like(dmin, np.int8) if scales.zero_point is None else scales.zero_point
        sub = zero - np.int8(grid.q_min)
    _check(sub, stored.least, stored.most, "sub-minima", ggml)
    return dmin, repeated(sub, parts)


def _check(numbers: NDArray[Any], low: int, high: int, what: str, ggml: GgmlType) -> None:
    if numbers.size and (numbers.min() < low or numbers.max() > high):
        raise ExportRefusedError(
            f"{what} {numbers.min()}..{numbers.max()} leave {ggml}'s {low}..{high}"
        )
