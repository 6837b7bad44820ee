"""Twins of a model's projections, whose weights lie as in the file.

A twin takes the place of a projection in the skeleton (see `exporters.onnx.tracing.skeleton`); what
it computes is what the graph computes.
"""

from torch import Tensor, nn

from exporters.onnx.tracing.operators import dequantize


class QuantizedProjection(nn.Module):
    """y = x @ dequantize(weight [K, N], weight_scale, weight_zero_point) + bias."""

    def __init__(
        self,
        q: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        block: int,
        bias: nn.Parameter | None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", q)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero_point", zero_point)
        self.block, self.bias = block, bias
        self.input: nn.Module = (
            nn.Identity()
        )  # or an exporters.onnx.tracing.rounded_input.RoundedInput

    def forward(self, x: Tensor) -> Tensor:
        """Project x (..., K) to (..., N)."""
        scale, zero_point = self.weight_scale, self.weight_zero_point
        y = self.input(x) @ dequantize(self.weight, scale, zero_point, self.block)
        return y if self.bias is None else y + self.bias


class FloatProjection(nn.Module):
    """y = x @ weight [K, N] + bias: a linear layer that stays in floating point, of any type.

    Not F.linear: the exporter would fold its transposition into an unnamed copy of the weight.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.bias = bias
        self.input: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Project x (..., K) to (..., N)."""
        y = self.input(x) @ self.weight.to(x.dtype)
        return y if self.bias is None else y + self.bias
