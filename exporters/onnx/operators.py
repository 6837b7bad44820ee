"""Operators of ONNX that torch does not have, as torch operators that the exporter translates.

They stand for QuantizeLinear and DequantizeLinear while a model is traced. The integers are int8 or
float32 then, and get their own types when the weights are attached.
"""

from typing import Any

import torch
from onnxscript import opset21
from torch import Tensor


@torch.library.custom_op("lrqat::dequantize", mutates_args=())
def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor | None, block: int) -> Tensor:
    """DequantizeLinear on integers [K, N]: blocked along K, or (block 0) one scale a column."""
    w, shape = q.to(scale.dtype), q.shape
    if block:
        w, scale = w.unflatten(0, (-1, block)), scale[:, None]
        zero_point = None if zero_point is None else zero_point[:, None]
    return (scale * (w if zero_point is None else w - zero_point)).reshape(shape)


@dequantize.register_fake
def _(q: Tensor, scale: Tensor, zero_point: Tensor | None, block: int) -> Tensor:
    return torch.empty(q.shape, dtype=scale.dtype, device=q.device)


@torch.library.custom_op("lrqat::quantize_dequantize", mutates_args=())
def quantize_dequantize(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """QuantizeLinear and DequantizeLinear, without their saturation: only ever traced."""
    return scale * (x / scale).round()


@quantize_dequantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.empty_like(x)


def _translate_dequantize(q: Any, scale: Any, zero_point: Any, block: int) -> Any:
    if block == 0:
        return opset21.DequantizeLinear(q, scale, zero_point, axis=1)
    return opset21.DequantizeLinear(q, scale, zero_point, axis=0, block_size=block)


def _translate_quantize_dequantize(x: Any, scale: Any, zero_point: Any) -> Any:
    q = opset21.QuantizeLinear(x, scale, zero_point)
    return opset21.DequantizeLinear(q, scale, zero_point)


TRANSLATION: dict[Any, Any] = {
    torch.ops.lrqat.dequantize.default: _translate_dequantize,
    torch.ops.lrqat.quantize_dequantize.default: _translate_quantize_dequantize,
}
