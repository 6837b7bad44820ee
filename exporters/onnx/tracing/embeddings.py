"""Twins of embeddings that are not stored as floats of the model's type, and of tied heads.

Rows are looked up first and computed then, so that a step touches no more of a table than the rows
it needs. A head that shares the table is a constant expression of it, which ONNX Runtime computes
when it loads the model, and whose product it fuses as any other.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporters.onnx.tracing.operators import dequantize_rows


class FloatEmbedding(nn.Module):
    """A floating embedding, [V, K] in any type.

    Args:
        weight: the table.
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
        """The weight [K, V] of a head that shares the table."""
        return self.weight.to(self.dtype).T


class QuantizedEmbedding(nn.Module):
    """An embedding of integers, laid out as in `exporters.onnx.weights.packed_rows`.

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
        groups = scale.shape[-1]
        q = q.unflatten(-1, (groups, -1))
        if self.weight_zero_point is not None:
            q = q - F.embedding(ids, self.weight_zero_point).to(scale.dtype)[..., None]
        return _scaled((q * scale[..., None]).flatten(-2).to(self.dtype), self.factor)

    def matrix(self) -> Tensor:
        """The weight [K, V] of a head that shares the table."""
        groups, columns = self.weight_scale.shape[1], self.weight.shape[1] * 8 // self.bits
        block = columns // groups if groups > 1 else 0
        scale, zero_point = self.weight_scale, self.weight_zero_point
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
    """y = x @ embedding^T: a head that shares the embedding's table."""

    def __init__(self, embedding: Any) -> None:
        super().__init__()
        self._embedding = [embedding]  # in a list, so that the table is registered once

    def forward(self, x: Tensor) -> Tensor:
        """Project x (..., K) to (..., vocabulary)."""
        embedding = self._embedding[0]
        if isinstance(embedding, FloatEmbedding | QuantizedEmbedding):
            return x @ embedding.matrix()
        return x @ embedding.weight.T


def factor_of(embedding: Any) -> float | None:
    """What a transformers embedding multiplies its rows by, rounded as the model does, or None."""
    # A number where there is one: Gemma's buffer has no value without memory for weights.
    factor = getattr(embedding, "scalar_embed_scale", getattr(embedding, "embed_scale", None))
    if factor is None:
        return None
    return float(torch.tensor(float(factor), dtype=embedding.weight.dtype))


def _scaled(rows: Tensor, factor: float | None) -> Tensor:
    return rows if factor is None else rows * factor
