"""Random integers and ranges of any grid, without any training."""

import ml_dtypes
import numpy as np

from lrqat.checkpoint.reader import QuantizedTensor
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.grids.grid import Float8Scale, FloatScale, PowerOfTwoScale

# Smallest subnormal, largest subnormal, smallest normal, one, largest.
EXTREMES = np.array([2**-24, 1023 * 2**-24, 2**-14, 1.0, 65504.0], np.float32)


def halves(rng, shape):
    """Every positive float16, subnormals too, equally likely."""
    return rng.integers(1, 0x7C00, shape, np.uint16).view(np.float16).astype(np.float32)


def multipliable(rng, shape, times):
    """The same of those of which 1 to `times` times are float16, too."""
    every = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(over="ignore"):
        fits = [(n * every).astype(np.float16) == n * every for n in range(1, times + 1)]
    return rng.choice(every[np.all(fits, axis=0)], shape)


def eighths(rng, shape):
    """Positive numbers of UE4M3, equally likely."""
    codes = rng.integers(1, 0x7F, shape, np.uint8)
    return codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)


def numbers(rng, codec, shape, columns, signed):
    """Values (out, groups) that `codec` stores, and its two levels."""
    sign = rng.choice(np.array([-1, 1] if signed else [1], np.int8), shape)
    if isinstance(codec, PowerOfTwoScale):
        return sign * np.exp2(rng.integers(-126, 124, shape)).astype(np.float32), None, None
    if isinstance(codec, Float8Scale):
        return eighths(rng, shape), None, None
    if isinstance(codec, FloatScale):
        return sign * halves(rng, shape), None, None
    supers = shape[0], columns // codec.super_block
    top = halves(rng, supers) if codec.times == 1 else multipliable(rng, supers, codec.times)
    sub = sign * rng.integers(max(codec.least, 0), codec.most + 1, shape).astype(np.int8)
    if codec.least:  # a scale, which is never zero
        sub[sub == 0] = 1
    return top.repeat(shape[1] // top.shape[1], axis=1) * sub, top, sub


def make(grid, rows, columns, seed=0):
    """A random tensor on `grid` that has all of its integers."""
    rng = np.random.default_rng(seed)
    shape = rows, grid.groups(columns)
    scale, super_scale, sub_scale = numbers(rng, grid.scale, shape, columns, grid.signed_scale)
    zero_point = minimum = super_minimum = sub_minimum = None
    if grid.zero_point:
        zero_point = rng.integers(grid.q_min, grid.q_max + 1, shape).astype(np.int8)
    if grid.minimum:
        signed = isinstance(grid.minimum, FloatScale)
        made = numbers(rng, grid.minimum, shape, columns, signed)
        minimum, super_minimum, sub_minimum = made
    tensor_scale = None
    if isinstance(grid.scale, Float8Scale):
        tensor_scale = np.full((rows, 1), np.exp2(rng.integers(-40, 20)), np.float32)
        scale = scale * tensor_scale
    levels = np.array(grid.levels or range(grid.q_min, grid.q_max + 1), np.int8)
    q = np.resize(levels, (rows, columns))
    rng.shuffle(q.reshape(-1))
    ranges = StoredScales(
        scale, zero_point, minimum, super_scale, sub_scale, super_minimum, sub_minimum,
        tensor_scale,
    )  # fmt: skip
    return QuantizedTensor("made", q, ranges, grid)


def with_scales(tensor, scale):
    """`tensor` with other plain scales (out, groups)."""
    return QuantizedTensor(tensor.name, tensor.q, StoredScales(scale), tensor.grid)
