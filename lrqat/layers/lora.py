"""Plain LoRA, to compare with: it is merged and rounded at the end."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrqat.grids.quantize import Scales


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
