"""The elementwise passes over a block of a weight: plain PyTorch on CPUs, one kernel each on GPUs.

    weights      V -> W
    gradients    V, G = dL/dW -> W, D, dL/ds, dL/do      (D of `lrqat.layers.weight`)

On a CPU a block of rows stays in a core's cache, and several passes over it cost little. On a GPU
every pass is a way to memory and back, so torch.compile makes one kernel of them (Inductor, which
writes Triton). Both run the same functions of `lrqat.grids.quantize`, so they give the same
integers; a compiler may join a product and a sum into one rounding, which moves a weight of a grid
with minima by its last bit before it is rounded to the compute type.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrqat.grids.grid import Grid
from lrqat.grids.quantize import Scales, grouped, integers, to_weights, where_inside


class WeightGradients(NamedTuple):
    """What `gradients` gives of a block of rows.

    Attributes:
        weights: W (rows, in).
        low_rank: D = u s G M (rows, in), or None if it was not asked for.
        scale: dL/ds (rows, groups).
        minimum: dL/do (rows, groups) on a grid with minima, else None.
    """

    weights: Tensor
    low_rank: Tensor | None
    scale: Tensor
    minimum: Tensor | None


def weights(latent: Tensor, scales: Scales, grid: Grid) -> Tensor:
    """W of V (rows, in) with the stored scales of these rows; may overwrite V."""
    return _run(_weights, (), latent, scales, grid)


def gradients(
    latent: Tensor, grad_weight: Tensor, scales: Scales, slope: Tensor | None, grid: Grid
) -> WeightGradients:
    """The gradients of `lrqat.layers.weight` that G gives; may overwrite V and G.

    Args:
        latent: V (rows, in).
        grad_weight: G (rows, in), in the dtype of V.
        scales: stored scales of these rows.
        slope: u s (rows, groups), or None if A and B are not trained.
        grid: the grid.
    """
    if slope is None:
        return _run(_range_gradients, (grad_weight,), latent, scales, grid)
    return _run(_gradients, (grad_weight, slope), latent, scales, grid)


def range_gradients(grad_weight: Tensor, q: Tensor, scales: Scales) -> tuple[Tensor, Tensor | None]:
    """dL/ds and dL/do (rows, groups) of G and the integers (rows, in); overwrites G."""
    minimum = shift = None
    if scales.minimum is not None:
        minimum = -grouped(grad_weight, scales).sum(-1)
    if scales.zero_point is not None:
        shift = scales.zero_point * grouped(grad_weight, scales).sum(-1)
    scale = grouped(grad_weight.mul_(q), scales).sum(-1)
    return scale if shift is None else scale - shift, minimum


def _weights(latent: Tensor, scales: Scales, grid: Grid) -> Tensor:
    return to_weights(integers(latent, grid), scales)


def _gradients(
    latent: Tensor, grad_weight: Tensor, slope: Tensor, scales: Scales, grid: Grid
) -> WeightGradients:
    low_rank = where_inside(grad_weight, latent, grid)
    grouped(low_rank, scales).mul_(slope[:, :, None])
    return _range_gradients(latent, grad_weight, scales, grid)._replace(low_rank=low_rank)


def _range_gradients(
    latent: Tensor, grad_weight: Tensor, scales: Scales, grid: Grid
) -> WeightGradients:
    q = integers(latent, grid)
    scale, minimum = range_gradients(grad_weight, q, scales)
    return WeightGradients(to_weights(q, scales), None, scale, minimum)


def _run(
    passes: Callable[..., Any], more: tuple[Tensor, ...], latent: Tensor, scales: Scales, grid: Grid
) -> Any:
    if not _fuses(latent):
        return passes(latent, *more, scales, grid)
    return _fused(passes, grid)(scales.parts(), latent, *more)


def _fuses(tensor: Tensor) -> bool:
    return tensor.is_cuda


@cache
def _fused(passes: Callable[..., Any], grid: Grid) -> Callable[..., Any]:
    def kernel(parts: tuple[Tensor | None, ...], *blocks: Tensor) -> Any:
        # The passes write in place; into clones, which the compiler leaves out.
        return passes(*(block.clone() for block in blocks), Scales.of(parts), grid)

    return torch.compile(kernel, dynamic=True)
