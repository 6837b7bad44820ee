"""A trained weight: the frozen part, the low-rank matrices inside the rounding, and the scales.

    W = s * q - o,   q = the grid's integer nearest to V,   V = Phi0 + (alpha / r) u (A B)

    Phi0 (out, in) frozen   A (out, r)   B (r, in)   u, s, o (out, groups)   W (out, in)

V counts steps of its group, of the size s0 that training began with, and u = (mean |s0| of the row)
/ s0. The paper has one scale per row, and there u = 1. With many scales per row, some negative,
steps of unlike size and sign would scatter what A and B do; with u their product is a change of the
weights of rank r, counted in mean steps of the row.

Gradients, with G = dL/dW, rounding straight-through, and M = 1 where nothing was clipped:

    dL/ds = sum over the group of G * q       dL/do = -sum of G      (Phi0 depends on neither)
    dL/dA = (alpha/r) D B^T     dL/dB = (alpha/r) A^T D     D = u dL/dV = u s G M

A weight that is thawed has no A and B: V itself, every entry of it, is trained in float32, with
dL/dV = s G M. That is how the block-wise stage trains (`lrqat.training.blocks`), one decoder block
at a time; what it has found is frozen again as Phi0.

`QuantizedWeight` knows these and nothing of who uses the weight: a projection
(`lrqat.layers.linear`), an embedding (`lrqat.layers.embedding`) or an expert
(`lrqat.layers.experts`).
Source: Bondarenko, Del Chiaro, Nagel, "Low-Rank Quantization-Aware Training for LLMs", 2024.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lrqat.grids.grid import Grid
from lrqat.grids.quantize import Scales, dequantize, integers, to_latent
from lrqat.layers import kernels
from lrqat.layers.frozen import Downcast

# Weights that a block of rows holds. On a CPU its temporaries then stay in a core's cache; a GPU
# needs more to be busy, and 32 MB of float32 at a time are still little memory.
BLOCK_WEIGHTS = 1 << 17
GPU_BLOCK_WEIGHTS = 1 << 23

_LARGEST_UNIT = 8.0  # groups of next to nothing have scales of next to nothing


def row_blocks(rows: int, columns: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover `rows`, each of about as many weights as suit `device`."""
    block = GPU_BLOCK_WEIGHTS if device.type == "cuda" else BLOCK_WEIGHTS
    step = max(1, block // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


class Gradients:
    """The gradients of a weight's parameters, gathered over blocks of rows."""

    def __init__(self, weight: "QuantizedWeight") -> None:
        self._of = {
            name: torch.zeros_like(p) for name, p in weight.trained().items() if p.requires_grad
        }

    def __getitem__(self, name: str) -> Tensor | None:
        return self._of.get(name)


class QuantizedWeight(nn.Module):
    """A weight (out, in) on a grid.

    `lora_a` (out, r) is made zero and `lora_b` (r, in) Kaiming-uniform, which is plain
    round-to-nearest; `lrqat.init.lora_init` may start them elsewhere. They, `scale` and `minimum`
    are float32 whatever the compute dtype: in bfloat16 a step of 1e-5 would never move a scale.

    Attributes:
        phi: frozen parameter (out, columns) in the form of `downcast`: W0 / s0.
        lora_a: float32 (out, r).
        lora_b: float32 (r, in).
        scale: float32 (out, groups), before rounding to the stored form.
        minimum: float32 (out, groups) on a grid with minima, else None.
        zero_point: frozen float32 (out, groups), integers, on a grid that has them, else None.
        scaling: alpha / r, times the mean distance of levels on a codebook grid.
        unit: u, frozen bfloat16 (out, groups), or None with one scale per row.
        settled: whether nothing of it is trained (`lrqat.models.surgery.Target`).
        thawed: whether `phi` is V, and trained.
    """

    settled = False
    thawed = False
    minimum: nn.Parameter | None
    zero_point: Tensor | None
    start_scale: Tensor | None
    start_minimum: Tensor | None
    unit: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        scales: Scales,
        *,
        grid: Grid,
        downcast: Downcast,
        rank: int,
        alpha: float,
        source_dtype: torch.dtype | None = None,
    ) -> None:
        """Freeze `weight` (out, in) on `grid` with the start scales of `lrqat.init.range_init`."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.grid, self.downcast = grid, downcast
        self.scaling = alpha / rank * grid.step if rank else 0.0
        self.source_dtype = source_dtype or weight.dtype
        phi = downcast.encode(to_latent(weight.detach().float(), scales), grid)
        self.phi = nn.Parameter(phi, requires_grad=False)
        self.scale = nn.Parameter(scales.scale.clone())
        self.minimum = None if scales.minimum is None else nn.Parameter(scales.minimum.clone())
        self.register_buffer("zero_point", scales.zero_point)
        self.register_buffer("unit", _unit(scales.scale), persistent=False)
        # Where Phi0 is exact the original weight can be had back, given the scales it began with.
        start = scales if downcast.exact else None
        self.register_buffer("start_scale", start.scale if start else None, persistent=False)
        minimum = start.minimum if start else None
        self.register_buffer("start_minimum", minimum, persistent=False)
        make = functools.partial(torch.empty, dtype=torch.float32, device=weight.device)
        self.lora_a = nn.Parameter(make(self.out_features, rank).zero_())
        self.lora_b = nn.Parameter(make(rank, self.in_features))
        if rank:
            nn.init.kaiming_uniform_(self.lora_b, a=math.sqrt(5))

    @property
    def keeps_original(self) -> bool:
        """Whether the full-precision weight can be had back."""
        return self.start_scale is not None

    @torch.no_grad()
    def thaw(self, latent: Tensor | None = None) -> None:
        """Make V a trained float32 parameter. The original weight is forgotten.

        Args:
            latent: where V starts, float32 (out, in); None: where it is.
        """
        start = self.latent(slice(None)) if latent is None else latent
        self.phi, self.thawed = nn.Parameter(start), True
        self.forget_original()

    @torch.no_grad()
    def freeze(self, downcast: Downcast) -> None:
        """Keep the integers in the form of `downcast` as Phi0, from which A and B start anew.

        Not V itself: training leaves many of its entries beside an edge of rounding, where the next
        small change of A, B and the scales would turn their integers at random.
        """
        phi = downcast.encode(integers(self.phi.detach().clone(), self.grid), self.grid)
        self.downcast, self.thawed = downcast, False
        self.phi = nn.Parameter(phi, requires_grad=False)
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """Let A start at zero from Phi0 and the scales as they are now."""
        self.forget_original()
        self.unit = _unit(self.stored().scale)
        self.lora_a.zero_()

    def forget_original(self) -> None:
        """Drop what would give the full-precision weight back."""
        self.start_scale = self.start_minimum = None

    def trained(self) -> dict[str, nn.Parameter]:
        """A, B (thawed: V), s and the minima by name, whether or not they are being trained."""
        whole = {"phi": self.phi}
        low_rank = {"lora_a": self.lora_a, "lora_b": self.lora_b}
        named = (whole if self.thawed else low_rank) | {"scale": self.scale}
        return named if self.minimum is None else named | {"minimum": self.minimum}

    def masters(self) -> Scales:
        """Scales and offsets as they are optimised, before rounding."""
        return Scales(self.scale, self.minimum, self.zero_point)

    def stored(self) -> Scales:
        """Scales and offsets as they ship."""
        return self.masters().stored(self.grid, self.in_features)

    def start_scales(self) -> Scales:
        """The scales that Phi0 was made with. Only where `keeps_original`."""
        return Scales.of((self.start_scale, self.start_minimum, self.zero_point))

    def row_blocks(self) -> Iterator[slice]:
        """Slices that cover the rows, see the function of this name."""
        return row_blocks(self.out_features, self.in_features, self.scale.device)

    def latent(self, rows: slice | Tensor) -> Tensor:
        """V of some rows: a new (rows, in) in the dtype of A."""
        dtype = self.lora_a.dtype
        if self.thawed:
            return self.phi[rows].detach().clone()
        phi = self.downcast.decode(self.phi[rows], self.grid, self.in_features, dtype)
        if self.unit is None:
            return phi.addmm(self.lora_a[rows], self.lora_b, alpha=self.scaling)
        unit = self.unit[rows].to(dtype)[:, :, None]
        by_group = phi.view(*unit.shape[:2], -1)
        change = (self.lora_a[rows] @ self.lora_b).view_as(by_group)
        return by_group.addcmul(change, unit, value=self.scaling).view_as(phi)

    def slope(self, rows: slice | Tensor, stored: Scales) -> Tensor:
        """What a change of (alpha/r) A B (thawed: V) does to W: (rows, groups), u s (thawed: s)."""
        return stored.scale if self.thawed or self.unit is None else stored.scale * self.unit[rows]

    def write_weight(self, into: Tensor, stored: Scales) -> Tensor:
        """Fill `into` (out, in), of any floating dtype, with W."""
        for rows in self.row_blocks():
            into[rows] = kernels.weights(self.latent(rows), stored[rows], self.grid)
        return into

    def original(self, into: Tensor) -> Tensor:
        """Fill `into` (out, in) with the full-precision W0. Only where `keeps_original`."""
        start = self.start_scales()
        for rows in self.row_blocks():
            phi = self.downcast.decode(self.phi[rows], self.grid, self.in_features, torch.float32)
            # Rounding to the type W0 had undoes the rounding of the division by s0.
            into[rows] = dequantize(phi, start[rows]).to(self.source_dtype).to(into.dtype)
        return into

    def add_gradients(
        self, grads: Gradients, grad_weight: Tensor, rows: slice, stored: Scales
    ) -> Tensor:
        """Add what dL/dW (rows, in) of a block gives to every parameter; overwrites it.

        Args:
            grads: where to add.
            grad_weight: G of these rows, in the dtype of A.
            rows: which.
            stored: stored scales of these rows.

        Returns:
            W of these rows (rows, in), since it is at hand.
        """
        grad_a, grad_b, grad_v = grads["lora_a"], grads["lora_b"], grads["phi"]
        low_rank = grad_a is not None and grad_b is not None
        slope = self.slope(rows, stored) if low_rank or grad_v is not None else None
        of_rows = kernels.gradients(self.latent(rows), grad_weight, stored, slope, self.grid)
        if grad_a is not None and grad_b is not None:
            assert of_rows.low_rank is not None
            grad_a[rows].addmm_(of_rows.low_rank, self.lora_b.T, alpha=self.scaling)
            grad_b.addmm_(self.lora_a[rows].T, of_rows.low_rank, alpha=self.scaling)
        if grad_v is not None:
            assert of_rows.low_rank is not None
            grad_v[rows] += of_rows.low_rank
        add_range_gradients(grads, rows, of_rows.scale, of_rows.minimum)
        return of_rows.weights

    @torch.no_grad()
    def integers(self) -> Tensor:
        """The integers as they stand: int8 (out, in). What the fuse writes."""
        return integers(self.latent(slice(None)), self.grid).to(torch.int8)

    @torch.no_grad()
    def start_integers(self) -> Tensor:
        """The integers before training, round-to-nearest of Phi0: int8 (out, in)."""
        start = self.downcast.decode(self.phi, self.grid, self.in_features, torch.float32)
        return integers(start.clone(), self.grid).to(torch.int8)

    def extra_repr(self) -> str:
        """Shapes, grid and rank, for print(model)."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"grid={self.grid.name}, rank={self.lora_a.shape[1]}, phi={self.downcast.name}"
        )


def add_range_gradients(
    grads: Gradients, rows: slice, scale: Tensor, minimum: Tensor | None
) -> None:
    """Add those of scales and minima, where they are trained."""
    for name, part in (("scale", scale), ("minimum", minimum)):
        total = grads[name]
        if total is not None and part is not None:
            total[rows] += part


def _unit(start: Tensor) -> Tensor | None:
    """Mean |s0| of each row over s0: bfloat16 (out, groups); None with one scale per row."""
    if start.shape[1] == 1:  # a negative one only means that a row of A is, too
        return None
    unit = start.abs().mean(1, keepdim=True) / start
    return unit.clamp(-_LARGEST_UNIT, _LARGEST_UNIT).nan_to_num(1.0).bfloat16()


class BuildWeight(torch.autograd.Function):
    """W of some rows as a differentiable tensor, for users that are not a matrix product."""

    @staticmethod
    def forward(ctx: Any, weight: QuantizedWeight, dtype: torch.dtype, *trained: Tensor) -> Tensor:
        """W (out, in) in `dtype`; `trained` are the values of `weight.trained()`."""
        ctx.weight = weight
        ctx.save_for_backward(*trained)
        into = torch.empty(
            weight.out_features, weight.in_features, dtype=dtype, device=weight.scale.device
        )
        return weight.write_weight(into, weight.stored())

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of `trained` from dL/dW (out, in)."""
        weight: QuantizedWeight = ctx.weight
        grads, stored = Gradients(weight), weight.stored()
        for rows in weight.row_blocks():
            block = outputs[0][rows].to(weight.lora_a.dtype, copy=True)
            weight.add_gradients(grads, block, rows, stored[rows])
        return None, None, *(grads[name] for name in weight.trained())
