"""Quantised activations: the grids, the rounding and its gradient.

    x_hat = s * (clip(round(x / s) + z, 0, 2^b - 1) - z)        z an integer in 0 .. 2^b - 1

s and z come from a range [low, high] that always holds zero, so zero is exact:

    s = (high - low) / (2^b - 1)        z = clip(round(0 - low / s))

with float32 operations and rounding to nearest, ties to even. That is ONNX's DynamicQuantizeLinear
(range of the data) and QuantizeLinear, DequantizeLinear (range fixed beforehand), for b = 4, 8, 16
with the unsigned types uint4, uint8, uint16. The zero-point of the LR-QAT paper's public code is
not rounded and has no ONNX form.

Gradients pass the rounding straight through. A dynamic range clips nothing beyond half a step, so
there the gradient is the identity. Static, with v = x / s and M = 1 where nothing was clipped:

    dL/dx = g M      dL/ds = sum g * ((q - z) - v M)      dL/dz = -s * sum g * (1 - M)

the gradient of LSQ (Esser et al., 2020) with a zero-point, without LSQ's constant factor, which
Adam would divide out again.

What the kernels of the runtimes do is in `lrqat.activations.runtime_rounding`; those grids are rows
here too.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrqat.activations.runtime_rounding import BLOCK_ROUNDINGS, number
from lrqat.activations.table import ActivationGrid
from lrqat.errors import GridError


class ActivationRange(NamedTuple):
    """A static range: s and z, float32 tensors of shape (); z holds an integer once rounded."""

    scale: Tensor
    zero_point: Tensor


def range_of(low: Tensor, high: Tensor, grid: ActivationGrid) -> ActivationRange:
    """The s and z of ranges [low, high], widened to hold zero: float32 like `low`.

    An empty range, or one so narrow that its step underflows, gets s = 1, where all of it is zero.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low).div(number(grid.q_max, low))
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return ActivationRange(scale, (-(low / scale)).clamp_(0, grid.q_max).round_())


def row_ranges(x: Tensor, grid: ActivationGrid) -> ActivationRange:
    """The s and z of every row of `x` (..., in) on a grid of TOKEN: float32 (..., 1) each."""
    return range_of(x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), grid)


def to_integers(x: Tensor, grid: ActivationGrid, ranges: ActivationRange) -> Tensor:
    """The integers of float32 `x` under `ranges` as they ship, as float32 of its shape.

    Their values are ranges.scale * (q - ranges.zero_point).
    """
    scale, zero_point = ranges
    return (x / scale).round_().add_(zero_point).clamp_(0, grid.q_max)


def quantize(x: Tensor, grid: ActivationGrid, ranges: ActivationRange | None = None) -> Tensor:
    """x_hat: `x` rounded to `grid`, with the gradients of the module docstring.

    Computed in float32 (float64 for a float64 `x`) and returned in the dtype of `x`: in bfloat16
    the values of 8 bits are therefore rounded once more.

    Args:
        x: (..., in), any floating dtype.
        grid: a row of the table.
        ranges: of a static grid, and of no other. They may require gradients; a zero-point that is
            learned is rounded here.

    Raises:
        GridError: the last dimension does not fit the blocks, or `ranges` is missing, or given to
            a grid that measures its own.
    """
    reason = grid.refuses(x.shape[-1])
    if reason:
        raise GridError(reason)
    if grid.static != (ranges is not None):
        needs = "needs ranges" if grid.static else "measures its own ranges and takes none"
        raise GridError(f"the activation grid {grid.name} {needs}")
    inputs = (x, *(ranges or ()))
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in inputs)):
        return _static(x, ranges, grid) if ranges else _dynamic(x, grid)
    if ranges:
        return _Clipped.apply(x, *ranges, grid)
    return _StraightThrough.apply(x, grid)


def stored_ranges(ranges: ActivationRange, grid: ActivationGrid) -> ActivationRange:
    """A range as it ships and as every forward uses it: s positive, z an integer on the grid."""
    smallest = torch.finfo(torch.float32).tiny
    return ActivationRange(
        ranges.scale.detach().clamp(min=smallest),
        ranges.zero_point.detach().round().clamp_(0, grid.q_max),
    )


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _dynamic(x: Tensor, grid: ActivationGrid) -> Tensor:
    wide = _wide(x)
    if grid.rounding is not None:
        blocks = wide.unflatten(-1, (-1, grid.block or x.shape[-1]))
        return BLOCK_ROUNDINGS[grid.rounding](blocks).flatten(-2).to(x.dtype)
    return _on_grid(wide, row_ranges(wide, grid), grid).to(x.dtype)


def _static(x: Tensor, ranges: ActivationRange, grid: ActivationGrid) -> Tensor:
    return _on_grid(_wide(x), stored_ranges(ranges, grid), grid).to(x.dtype)


def _on_grid(wide: Tensor, ranges: ActivationRange, grid: ActivationGrid) -> Tensor:
    return to_integers(wide, grid, ranges).sub_(ranges.zero_point).mul_(ranges.scale)


class _StraightThrough(torch.autograd.Function):
    """Dynamic ranges and blocks: the gradient is the identity, so nothing is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: ActivationGrid) -> Tensor:
        return _dynamic(x, grid)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None


class _Clipped(torch.autograd.Function):
    """Static ranges: keeps one byte a value, or x itself where s or z is learned."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, grid: ActivationGrid
    ) -> Tensor:
        ranges = stored_ranges(ActivationRange(scale, zero_point), grid)
        ctx.grid, ctx.learned = grid, any(ctx.needs_input_grad[1:3])
        rounded = (_wide(x) / ranges.scale).round_().add_(ranges.zero_point)
        q = rounded.clamp(0, grid.q_max)
        ctx.save_for_backward(*((x, *ranges) if ctx.learned else (rounded.eq_(q).bool(),)))
        return q.sub_(ranges.zero_point).mul_(ranges.scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        if not ctx.learned:
            return grad * ctx.saved_tensors[0], None, None, None
        x, scale, zero_point = ctx.saved_tensors
        v = _wide(x) / scale
        rounded = v.round().add_(zero_point)
        q = rounded.clamp(0, ctx.grid.q_max)
        inside = rounded.eq_(q)  # 1 where nothing was clipped
        wide = _wide(grad)
        grad_scale = (wide * q.sub_(zero_point).sub_(v.mul_(inside))).sum()
        grad_zero_point = -(scale * (wide * (1 - inside)).sum())
        return (wide * inside).to(x.dtype), grad_scale, grad_zero_point, None
