"""The methods: LR-QAT and what it is compared with, by one flag.

lr-qat          A, B and the scales (and minima) are trained, inside the rounding
scales          the scales (and minima) alone (PEQA, Kim et al., 2023)
full            every weight and the scales (LSQ, Esser et al., 2020)
lora-then-rtn   plain LoRA beside the full-precision weight, merged and rounded at the end
rtn             nothing: round-to-nearest with the start scales
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrqat.grids.quantize import Scales, grouped, inside, integers, to_latent, to_weights
from lrqat.layers.kernels import range_gradients
from lrqat.layers.linear import LRQATLinear
from lrqat.layers.weight import Gradients, add_range_gradients


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        summary: one line for `--help` and the documentation.
        low_rank: whether A and B exist.
        trains: names of the trained parameters, among those of a layer.
        layer: class of the layers it trains.
        learning_rate: peak rate of A and B where they do not move on a grid; None: that of their
            start.
    """

    summary: str
    low_rank: bool
    trains: frozenset[str]
    layer: type[nn.Module]
    learning_rate: float | None = None

    @property
    def rounds_inside(self) -> bool:
        """Whether training sees the rounding; else it comes at the end."""
        return self.layer is not LoRALinear

    @property
    def outcome(self) -> str:
        """What its model is in the end, for people."""
        if not self.trains:
            return "rounded"
        return "trained" if self.rounds_inside else "trained and then rounded"


class FullQATLinear(LRQATLinear):
    """Full quantisation-aware training with learned scales (LSQ): every weight is trained.

    V = (W + o) / s depends on s here, so dL/ds = sum G (q - V M), dL/do = -sum G (1 - M) and
    dL/dW = G M (Esser et al., "Learned Step Size Quantization", 2020, equations 3 and 5).
    """

    def __init__(
        self, weight: Tensor, scales: Scales, bias: Tensor | None = None, **settings: Any
    ) -> None:
        """As `LRQATLinear`; `weight` is the start of the trained one, float32."""
        super().__init__(weight, scales, bias, **settings)
        self.weight = nn.Parameter(weight.detach().float().clone())

    def trained(self) -> dict[str, nn.Parameter]:
        """The weight and the scales."""
        return super().trained() | {"weight": self.weight}

    def latent(self, rows: slice | Tensor) -> Tensor:
        """(W + o) / s of some rows."""
        return to_latent(self.weight[rows], self.stored()[rows])

    def add_gradients(
        self, grads: Gradients, grad_weight: Tensor, rows: slice, stored: Scales
    ) -> Tensor:
        """See `QuantizedWeight.add_gradients`."""
        latent = self.latent(rows)
        mask = inside(latent, self.grid)
        difference = latent * mask
        q = integers(latent, self.grid)
        scale, minimum = range_gradients(grad_weight * ~mask, q, stored)
        inner = grad_weight * (q * mask - difference)
        scale = scale + grouped(inner, stored).sum(-1)
        add_range_gradients(grads, rows, scale, minimum)
        full = grads["weight"]
        assert full is not None
        full[rows] += grad_weight * mask
        return to_weights(q, stored)


class LoRALinear(nn.Module):
    """y = x (W + (alpha/r) A B)^T + bias: what most people train before they round.

    A and B have the shapes and the start of `lrqat.layers.weight`; W stays in full precision.
    """

    settled = False  # as `QuantizedWeight`
    bias: Tensor | None

    def __init__(
        self, weight: Tensor, scales: Scales, bias: Tensor | None = None, **settings: Any
    ) -> None:
        """Keep `weight` (out, in) and add the matrices; `scales` only say what comes later."""
        super().__init__()
        del scales
        self.settings = settings
        rank = settings["rank"]
        self.out_features, self.in_features = weight.shape
        self.scaling = 1.0  # alpha = r, the usual choice outside a rounding
        self.phi = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.lora_a = nn.Parameter(torch.zeros(self.out_features, rank, device=weight.device))
        self.lora_b = nn.Parameter(torch.empty(rank, self.in_features, device=weight.device))
        nn.init.kaiming_uniform_(self.lora_b, a=5**0.5)
        self.exact = False

    def forward(self, x: Tensor) -> Tensor:
        """Project x (..., in) to (..., out)."""
        y = F.linear(x, self.phi.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        if self.exact:
            return y
        low = F.linear(F.linear(x, self.lora_b.to(x.dtype)), self.lora_a.to(x.dtype))
        return y + self.scaling * low

    @torch.no_grad()
    def merged(self) -> Tensor:
        """W + (alpha/r) A B: float32 (out, in)."""
        return self.phi.float() + self.scaling * self.lora_a @ self.lora_b


_RANGES = frozenset({"scale", "minimum"})
_LOW_RANK = frozenset({"lora_a", "lora_b"})

METHODS: dict[str, Method] = {
    "lr-qat": Method(
        "A, B and the scales, in the rounding", True, _LOW_RANK | _RANGES, LRQATLinear
    ),
    "scales": Method("the scales alone (PEQA)", False, _RANGES, LRQATLinear),
    "full": Method("every weight and the scales (LSQ)", False, _RANGES | {"weight"}, FullQATLinear),
    "lora-then-rtn": Method("plain LoRA, merged and rounded", True, _LOW_RANK, LoRALinear, 1e-3),
    "rtn": Method("nothing: round-to-nearest", False, frozenset(), LRQATLinear),
}
