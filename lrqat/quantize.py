"""The one definition of the integers and of the scale, in torch.

    q = clip(round(V), q_min, q_max)        V = Phi0 + (alpha / r) A B, float32 (out, in)
    W = s * q                               s one float per group of a row, rounded as it is stored

The layer's forward and backward, the fuse, the reference perplexity and (through the fused
checkpoint) every exporter use these functions and nothing else, so exported equals trained by
construction. Rounding is to nearest, ties to even, everywhere.
"""

import torch
from torch import Tensor

from lrqat.grid import Grid

_SCALE_DTYPES = {"float16": torch.float16, "float32": torch.float32}


def stored_scale(scale: Tensor, grid: Grid) -> Tensor:
    """Round float32 scales to the values that the file can hold.

    The magnitude is kept between the smallest positive and the largest finite value of the stored
    type, so a scale can shrink to nothing during training but never ships as zero or infinity. On a
    grid without signed scales a negative one becomes the smallest positive value.

    Args:
        scale: (out, groups), float32 or float64 (the latter in gradient checks).
        grid: says the stored type and whether the sign is free.

    Returns:
        Tensor like `scale`, every value exact in `grid.scale_dtype`. NaN stays NaN.
    """
    dtype = _SCALE_DTYPES[grid.scale_dtype]
    smallest, largest = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    smallest *= torch.finfo(dtype).eps  # the smallest subnormal
    magnitude = scale.abs() if grid.signed_scale else scale
    magnitude = magnitude.clamp(smallest, largest).to(dtype).to(scale.dtype)
    return torch.where(scale < 0, -magnitude, magnitude) if grid.signed_scale else magnitude


def integers(latent: Tensor, grid: Grid) -> Tensor:
    """clip(round(latent)) in the dtype of `latent` (any shape); overwrites and returns `latent`."""
    return latent.round_().clamp_(grid.q_min, grid.q_max)


def per_weight(scale: Tensor, in_features: int) -> Tensor:
    """Repeat scales (out, groups) along the inputs: (out, in_features), a view for one group."""
    rows, groups = scale.shape
    if groups == 1:
        return scale.expand(rows, in_features)
    return scale[:, :, None].expand(-1, -1, in_features // groups).reshape(rows, in_features)


def scale_by_group(weights: Tensor, scale: Tensor) -> Tensor:
    """Multiply `weights` (out, in) in place by `scale` (out, groups), and return it."""
    rows, groups = scale.shape
    weights.view(rows, groups, -1).mul_(scale[:, :, None])
    return weights


def dequantize(q: Tensor, scale: Tensor) -> Tensor:
    """The weights s * q that a file means: float32 (out, in), exact.

    Args:
        q: integers (out, in), any dtype.
        scale: stored scales (out, groups), float32.
    """
    return scale_by_group(q.to(torch.float32, copy=True), scale)
