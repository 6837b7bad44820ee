"""Full quantization-aware training, to compare with: every weight is learned."""

from typing import Any

from torch import Tensor, nn

from lrqat.grids.quantize import Scales, grouped, inside, integers, to_latent, to_weights
from lrqat.layers.kernels import range_gradients
from lrqat.layers.linear import LRQATLinear
from lrqat.layers.weight import Gradients, add_range_gradients


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
