"""Rounding scales and minima to what a file can store, in torch: one function for each codec.

    FloatScale         the nearest number of the type
    PowerOfTwoScale    the nearest power of two (in its logarithm)
    Float8Scale        t * e: t = the power of two for which the largest of the tensor is e = 224 to
                       448, e = the nearest UE4M3 number to value / t
    TwoLevelScale      d * c: d = fp16(largest magnitude of the super-block / largest sub-scale),
                       c = the nearest integer to value / d; where 2 d and 3 d must be float16, too
                       (`times`), d has two significant bits less

Every rounding gives the same values back when applied to its own result, so a scale that was read
from a file ships unchanged. In training the gradient goes straight through.
"""

import torch
from torch import Tensor

from lrqat.grids.grid import Float8Scale, FloatScale, PowerOfTwoScale, ScaleCodec, TwoLevelScale

_HALF_BITS = 11  # significant bits of a float16
_LEAST_FLOAT8, _LARGEST_FLOAT8 = 2.0**-9, 448.0  # of UE4M3
_DTYPES = {"float16": torch.float16, "float32": torch.float32}


def round_scale(values: Tensor, codec: ScaleCodec, *, signed: bool, group_size: int) -> Tensor:
    """Round `values` (out, groups), float32 or float64, to what `codec` stores.

    The magnitude is kept between the smallest positive and the largest number that can be stored,
    so that a scale never ships as zero or infinity; a minimum may be zero (its codec's `least`).
    Without `signed`, negative values become the least that can be stored. NaN stays NaN.

    Args:
        values: scales, or minima; of a whole tensor where the codec has a number for that.
        codec: how they are stored.
        signed: whether negative values are allowed.
        group_size: weights of a group, for the number of groups in a super-block.
    """
    if isinstance(codec, TwoLevelScale):
        super_scale, sub = two_levels(values, codec, signed=signed, group_size=group_size)
        return compose(super_scale, sub)
    if isinstance(codec, Float8Scale):
        tensor_scale, of_groups = tensor_and_groups(values)
        return tensor_scale * of_groups
    if isinstance(codec, PowerOfTwoScale):
        return _power_of_two(values)
    return _float(values, codec, signed)


def two_levels(
    values: Tensor, codec: TwoLevelScale, *, signed: bool, group_size: int
) -> tuple[Tensor, Tensor]:
    """Split `values` (out, groups) into super-scales (out, supers) and sub-scales (out, groups).

    Both in the dtype of `values`: super-scales exact in float16, sub-scales integers.
    """
    rows, groups = values.shape
    blocks = values.view(rows, -1, codec.super_block // group_size)
    magnitude = blocks.abs() if signed else blocks.clamp_min(0)
    super_scale = _super_scale(magnitude.amax(-1) / codec.most, codec.times)
    sub = magnitude.div_(super_scale[..., None]).round_().clamp_(max(codec.least, 0), codec.most)
    if signed:  # a scale never becomes zero: the sign stands and the magnitude is at least one
        sub = torch.where(blocks < 0, -sub.clamp_min_(1), sub.clamp_min_(1))
    return super_scale, sub.reshape(rows, groups)


def tensor_and_groups(values: Tensor) -> tuple[Tensor, Tensor]:
    """Split `values` (out, groups) into the tensor's power of two (1, 1) and UE4M3 (out, groups).

    Both in the dtype of `values`, whose product is exact. UE4M3 has 4 significant bits, 2^-6 as the
    smallest normal number and 2^-9 as the smallest of all.
    """
    limited = values.clamp(_LEAST_FLOAT8 * 2.0**-100, _LARGEST_FLOAT8 * 2.0**100)
    fraction, exponent = torch.frexp(limited.amax().view(1, 1) / _LARGEST_FLOAT8)
    one = torch.ones_like(fraction)
    tensor_scale = torch.ldexp(one, torch.where(fraction > 0.5, exponent, exponent - 1))
    tensor_scale = torch.where(fraction.isnan(), fraction, tensor_scale)
    of_groups = limited / tensor_scale
    step = torch.ldexp(torch.ones_like(of_groups), torch.frexp(of_groups).exponent - 4)
    step = step.clamp_min_(_LEAST_FLOAT8)
    return tensor_scale, (of_groups / step).round_().mul_(step).clamp_min_(_LEAST_FLOAT8)


def _super_scale(values: Tensor, times: int) -> Tensor:
    """The nearest float16, or where `times` is more than 1, the nearest with fewer bits.

    So many fewer that 1 to `times` times are float16 numbers, too, as small as they may be.
    """
    spare = (times - 1).bit_length()
    if spare:
        digits = 2.0 ** (_HALF_BITS - spare)
        fraction, exponent = torch.frexp(values.clamp_max(2.0 ** (15 - spare)))
        values = torch.ldexp((fraction * digits).round() / digits, exponent)
    return _float(values, FloatScale(), signed=False)


def compose(super_scale: Tensor, sub: Tensor) -> Tensor:
    """The products of `two_levels`: (out, groups). Exact in float32: 11 + 8 significant bits."""
    rows, supers = super_scale.shape
    return (sub.view(rows, supers, -1) * super_scale[..., None]).reshape(rows, -1)


def _float(values: Tensor, codec: FloatScale, signed: bool) -> Tensor:
    dtype = _DTYPES[codec.dtype]
    smallest, largest = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    smallest *= torch.finfo(dtype).eps  # the smallest subnormal
    magnitude = values.abs() if signed else values
    magnitude = magnitude.clamp(smallest, largest).to(dtype).to(values.dtype)
    return torch.where(values < 0, -magnitude, magnitude) if signed else magnitude


def _power_of_two(values: Tensor) -> Tensor:
    # ggml's half-scale form of E8M0 needs 2^-127 and above; 2^-126 is the smallest normal float32.
    exponent = values.clamp(2.0**-126, 2.0**126).log2().round()
    return torch.exp2(exponent)
