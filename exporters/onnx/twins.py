"""Twins of a model's projections, whose weights lie as in the file.

A twin takes the place of a projection in the skeleton (see `exporters.onnx.skeleton`); what it
computes is what the graph computes. `lrqat::dequantize` stands for ONNX's DequantizeLinear, which
`exporters.onnx.graph` translates it to.
"""

import torch
from torch import Tensor, nn


@torch.library.custom_op("lrqat::dequantize", mutates_args=())
def dequantize(q: Tensor, scale: Tensor, block: int) -> Tensor:
    """DequantizeLinear on integers [K, N]: blocked along K, or (block 0) one scale a column."""
    if block == 0:
        return q.to(scale.dtype) * scale
    return (q.to(scale.dtype).unflatten(0, (-1, block)) * scale[:, None]).flatten(0, 1)


@dequantize.register_fake
def _(q: Tensor, scale: Tensor, block: int) -> Tensor:
    return torch.empty(q.shape, dtype=scale.dtype, device=q.device)


class QuantizedTwin(nn.Module):
    """y = x @ dequantize(weight [K, N], weight_scale) + bias."""

    def __init__(self, q: Tensor, scale: Tensor, block: int, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.register_buffer("weight", q)
        self.register_buffer("weight_scale", scale)
        self.block, self.bias = block, bias

    def forward(self, x: Tensor) -> Tensor:
        """Project x (..., K) to (..., N)."""
        y = x @ dequantize(self.weight, self.weight_scale, self.block)
        return y if self.bias is None else y + self.bias


class LinearTwin(nn.Module):
    """y = x @ weight [K, N] + bias: a linear layer that stays in floating point.

    Not F.linear: the exporter would fold its transposition into an unnamed copy of the weight.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """Project x (..., K) to (..., N)."""
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class TiedHeadTwin(nn.Module):
    """y = x @ embedding^T: a head that shares the embedding's table [vocabulary, K]."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self._embedding = [embedding]  # in a list, so that the table is registered once

    def forward(self, x: Tensor) -> Tensor:
        """Project x (..., K) to (..., vocabulary)."""
        table = self._embedding[0].weight
        assert isinstance(table, Tensor)
        return x @ table.T
