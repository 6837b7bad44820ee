"""Stand-ins: modules that take a layer's place while its model is traced.

A stand-in's weight lies as in the file, and what it computes is what the graph computes; which
layer gets which one is in `exporters.onnx.tracing.skeleton`. Its `input` rounds what it is given,
where that was trained.

Rows of an embedding are looked up first and computed then, so that a step touches no more of it
than the rows it needs. A head that is the embedding is a constant expression of it, which ONNX
Runtime computes when it loads the model, and whose product it fuses as any other. An 8-bit head
that is `loaded` is such an expression, down to the floating-point weight: see `Plan.loads_head`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporters.onnx.activations import QDQ, Rounding
from exporters.onnx.tracing.operators import dequantize, dequantize_rows, quantize_dequantize
from lrqat.activations.grids import ActivationRange, quantize, to_integers


class QuantizedProjection(nn.Module):
    """y = x @ dequantize(weight [K, N], weight_scale, weight_zero_point) + bias."""

    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor | None

    def __init__(
        self,
        q: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        block: int,
        bias: nn.Parameter | None,
        *,
        loaded: bool = False,
    ) -> None:
        super().__init__()
        self.loaded = loaded
        self.register_buffer("weight", q)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero_point", zero_point)
        self.block, self.bias = block, bias
        self.input: nn.Module = nn.Identity()  # or a RoundedInput

    def forward(self, x: Tensor) -> Tensor:
        """Project x (..., K) to (..., N)."""
        scale, zero_point = self.weight_scale, self.weight_zero_point
        if self.loaded:
            columns = self.weight.shape[1]
            of_rows = None if zero_point is None else zero_point.view(-1, columns).T
            weight = _in_floats(self.weight.T, scale.view(-1, columns).T, of_rows).T
        else:
            weight = dequantize(self.weight, scale, zero_point, self.block)
        y = self.input(x) @ weight
        return y if self.bias is None else y + self.bias


class FloatProjection(nn.Module):
    """y = x @ weight [K, N] + bias: an unquantized linear layer, of any type.

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


class FloatEmbedding(nn.Module):
    """An unquantized embedding, [V, K] in any type.

    Args:
        weight: its rows.
        dtype: of the model.
        factor: what the model multiplies rows by (Gemma), or None.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, dtype: torch.dtype, factor: float | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.dtype, self.factor = dtype, factor

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (..., K) of ids (...)."""
        return _scaled(F.embedding(ids, self.weight).to(self.dtype), self.factor)

    def matrix(self) -> Tensor:
        """The weight [K, V] of a head that is the embedding."""
        return self.weight.to(self.dtype).T


class QuantizedEmbedding(nn.Module):
    """An embedding of integers, laid out as in `exporters.onnx.weights.storage`.

    Args:
        codes: the integers.
        scale: [V, groups].
        zero_point: [V, groups], or None.
        bits: of an integer in the file.
        dtype: of the model.
        factor: what the model multiplies rows by, or None.
    """

    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor | None

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        bits: int,
        dtype: torch.dtype,
        factor: float | None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", codes)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero_point", zero_point)
        self.bits, self.dtype, self.factor = bits, dtype, factor

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (..., K) of ids (...)."""
        scale = F.embedding(ids, self.weight_scale)
        q = self._unpacked(F.embedding(ids, self.weight).to(scale.dtype))
        zero_point = self.weight_zero_point
        if zero_point is not None:
            zero_point = F.embedding(ids, zero_point)
        return _scaled(_in_floats(q, scale, zero_point).to(self.dtype), self.factor)

    def matrix(self, *, loaded: bool = False) -> Tensor:
        """The weight [K, V] of a head that is the embedding."""
        groups, columns = self.weight_scale.shape[1], self.weight.shape[1] * 8 // self.bits
        block = columns // groups if groups > 1 else 0
        scale, zero_point = self.weight_scale, self.weight_zero_point
        if loaded:
            return _in_floats(self.weight, scale, zero_point).to(self.dtype).T
        return dequantize_rows(self.weight, scale, zero_point, block, self.bits).to(self.dtype)

    def _unpacked(self, codes: Tensor) -> Tensor:
        """Integers of codes in floats, exactly."""
        if self.bits == 8:
            return codes
        parts, levels = [], 1 << self.bits
        for _ in range(8 // self.bits - 1):
            above = (codes / levels).floor()
            parts.append(codes - levels * above)
            codes = above
        return torch.cat([*parts, codes], dim=-1) - levels // 2


class TiedHead(nn.Module):
    """y = x @ embedding^T + bias: a head that is the embedding."""

    def __init__(self, embedding: Any, bias: nn.Parameter | None, *, loaded: bool = False) -> None:
        super().__init__()
        self.bias, self.loaded = bias, loaded
        self._embedding = [embedding]  # in a list, so that its weight is registered once

    def forward(self, x: Tensor) -> Tensor:
        """Project x (..., K) to (..., vocabulary)."""
        embedding = self._embedding[0]
        if isinstance(embedding, QuantizedEmbedding):
            weight = embedding.matrix(loaded=self.loaded)
        elif isinstance(embedding, FloatEmbedding):
            weight = embedding.matrix()
        else:
            weight = embedding.weight.T
        y = x @ weight
        return y if self.bias is None else y + self.bias


def _in_floats(q: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """Rows of weights (..., K) of integers, and of scales and zero-points (..., groups)."""
    wide = q.to(scale.dtype).unflatten(-1, (scale.shape[-1], -1))
    if zero_point is not None:
        wide = wide - zero_point.to(scale.dtype)[..., None]
    return (wide * scale[..., None]).flatten(-2)


def _scaled(rows: Tensor, factor: float | None) -> Tensor:
    return rows if factor is None else rows * factor
