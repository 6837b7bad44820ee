"""The layer: a linear projection whose low-rank matrices live inside the rounding.

    y = x W^T + bias,   W = s * clip(round(Phi0 + (alpha / r) A B), q_min, q_max)

    x (..., in)   Phi0 (out, in) frozen   A (out, r)   B (r, in)   s (out, groups)   W (out, in)

Gradients, with G = dL/dW = g^T x, rounding straight-through, and M = 1 where nothing was clipped:

    dL/dx = g W      dL/ds = sum over the group of G * q      (Phi0 does not depend on s)
    dL/dV = G s M    dL/dA = (alpha/r) dL/dV B^T              dL/dB = (alpha/r) A^T dL/dV

Between forward and backward only x and the parameters are kept. Both passes build W in blocks of
rows, so beside the one full W there are only block-sized temporaries, and G never exists whole.
Source: Bondarenko, Del Chiaro, Nagel, "Low-Rank Quantization-Aware Training for LLMs", 2024.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrqat.downcast import Downcast
from lrqat.grid import Grid
from lrqat.quantize import integers, per_weight, scale_by_group, stored_scale

# Weights a row block holds: 16 MB in float32, large enough that the matmuls run at full speed.
_BLOCK_WEIGHTS = 1 << 22


def _row_blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _BLOCK_WEIGHTS // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


class _LRQATFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        phi: Tensor,
        a: Tensor,
        b: Tensor,
        scale: Tensor,
        layer: "LRQATLinear",
    ) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x, phi, a, b, scale)
        weight = torch.empty(phi.shape, dtype=x.dtype, device=x.device)
        stored = stored_scale(scale, layer.grid)
        for rows in _row_blocks(*phi.shape):
            q = integers(layer.latent(phi[rows], a[rows], b), layer.grid)
            weight[rows] = scale_by_group(q, stored[rows])
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, phi, a, b, scale = ctx.saved_tensors
        layer: LRQATLinear = ctx.layer
        grad = grads[0].reshape(-1, phi.shape[0])  # (tokens, out)
        inputs = x.reshape(-1, phi.shape[1])  # (tokens, in)
        stored = stored_scale(scale, layer.grid)
        needs_x = ctx.needs_input_grad[0]
        weight = torch.empty(phi.shape, dtype=x.dtype, device=x.device) if needs_x else None
        grad_a, grad_b = torch.empty_like(a), torch.zeros_like(b)
        grad_scale = torch.empty_like(scale)
        for rows in _row_blocks(*phi.shape):
            rounded = layer.latent(phi[rows], a[rows], b).round_()
            q = rounded.clamp(layer.grid.q_min, layer.grid.q_max)
            inside = rounded.eq_(q)  # 1 where nothing was clipped
            grad_weight = (grad[:, rows].T @ inputs).to(a.dtype)  # G: (block, in)
            grouped = (*stored[rows].shape, -1)
            grad_scale[rows] = (grad_weight * q).view(grouped).sum(-1)
            if weight is not None:
                weight[rows] = scale_by_group(q, stored[rows])
            grad_latent = scale_by_group(grad_weight.mul_(inside), stored[rows])
            grad_a[rows] = layer.scaling * (grad_latent @ b.T)
            grad_b.addmm_(a[rows].T, grad_latent, alpha=layer.scaling)
        grad_x = (grad @ weight).view(x.shape) if weight is not None else None
        return grad_x, None, grad_a, grad_b, grad_scale, None


class LRQATLinear(nn.Module):
    """A frozen linear layer on a grid, trained through A, B and s.

    `lora_a` (out, r) starts at zero and `lora_b` (r, in) Kaiming-uniform, so the first step
    computes plain round-to-nearest. `lora_a`, `lora_b` and `scale` are float32 whatever the compute
    dtype: in bfloat16 a step of 1e-5 would never move a scale.

    Attributes:
        phi: buffer (out, in) in the dtype of `downcast`: the frozen W0 / s0.
        lora_a: float32 (out, r).
        lora_b: float32 (r, in).
        scale: float32 (out, groups), before rounding to the stored type.
        bias: (out,) frozen, or None.
        scaling: alpha / r.
    """

    phi: Tensor
    bias: Tensor | None

    def __init__(
        self,
        phi: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        *,
        grid: Grid,
        downcast: Downcast,
        rank: int,
        alpha: float,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = phi.shape
        self.grid, self.downcast, self.scaling = grid, downcast, alpha / rank
        self.register_buffer("phi", phi)
        self.register_buffer("bias", bias)
        self.scale = nn.Parameter(scale)
        zeros = functools.partial(torch.zeros, dtype=torch.float32, device=phi.device)
        self.lora_a = nn.Parameter(zeros(self.out_features, rank))
        self.lora_b = nn.Parameter(zeros(rank, self.in_features))
        nn.init.kaiming_uniform_(self.lora_b, a=math.sqrt(5))

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, scale: Tensor, *, grid: Grid, downcast: Downcast, **low_rank: Any
    ) -> "LRQATLinear":
        """Freeze `linear` on `grid` with start scales (out, groups) from `lrqat.range_init`.

        Args:
            linear: the layer; its weight (out, in) is not modified.
            scale: float32 (out, groups), rounded as stored.
            grid: the grid; its groups must fit the inputs.
            downcast: form of the frozen weights.
            **low_rank: `rank` and `alpha`.
        """
        weight = linear.weight.detach().float()
        latent = weight / per_weight(scale, linear.in_features)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        phi = downcast.encode(latent, grid)
        return cls(phi, scale.float(), bias, grid=grid, downcast=downcast, **low_rank)

    def latent(self, phi: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """V = Phi0 + (alpha / r) A B of a block of rows: a new (rows, in) in the dtype of A."""
        with torch.autocast(phi.device.type, enabled=False):
            return self.downcast.decode(phi, self.grid, a.dtype).addmm_(a, b, alpha=self.scaling)

    def forward(self, x: Tensor) -> Tensor:
        """Project x (..., in) to (..., out), in the dtype of x (or of an enclosing autocast)."""
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            y = _LRQATFunction.apply(x, self.phi, self.lora_a, self.lora_b, self.scale, self)
            return y if self.bias is None else y + self.bias.to(y.dtype)

    @torch.no_grad()
    def integers(self) -> Tensor:
        """The integers as they stand: int8 (out, in). What the fuse writes."""
        return integers(self.latent(self.phi, self.lora_a, self.lora_b), self.grid).to(torch.int8)

    @torch.no_grad()
    def start_integers(self) -> Tensor:
        """The integers before training, round-to-nearest of Phi0: int8 (out, in)."""
        start = self.downcast.decode(self.phi, self.grid)
        return integers(start, self.grid).to(torch.int8)

    @torch.no_grad()
    def stored_scale(self) -> Tensor:
        """The scales as they ship: float32 (out, groups), exact in the grid's scale type."""
        return stored_scale(self.scale, self.grid)

    def extra_repr(self) -> str:
        """Shapes, grid and rank, for print(model)."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"grid={self.grid.name}, rank={self.lora_a.shape[1]}, phi={self.downcast.name}, "
            f"bias={self.bias is not None}"
        )
