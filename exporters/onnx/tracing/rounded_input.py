"""Rounded inputs of twins, as modules whose trace is what the graph computes."""

from torch import Tensor, nn

from exporters.onnx.activations import QDQ, Rounding
from exporters.onnx.tracing.operators import quantize_dequantize
from lrqat.activations.grids import ActivationRange, quantize, to_integers


class RoundedInput(nn.Module):
    """Rounds what passes through, computing in float32 as training does.

    Args:
        rounding: arithmetic or qdq.
        scale: float32 (), of a static grid.
        zero_point: float32 (), of a static grid.
    """

    scale: Tensor | None
    zero_point: Tensor | None

    def __init__(self, rounding: Rounding, scale: Tensor | None, zero_point: Tensor | None) -> None:
        super().__init__()
        self.rounding = rounding
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    def forward(self, x: Tensor) -> Tensor:
        """Round x (..., in)."""
        scale, zero_point = self.scale, self.zero_point
        if scale is None or zero_point is None:
            return quantize(x, self.rounding.grid)
        if self.rounding.form == QDQ:
            return quantize_dequantize(x.float(), scale, zero_point).to(x.dtype)
        q = to_integers(x.float(), self.rounding.grid, ActivationRange(scale, zero_point))
        return ((q - zero_point) * scale).to(x.dtype)
