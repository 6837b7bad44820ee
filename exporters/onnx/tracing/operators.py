"""Operators of ONNX that torch does not have, as torch operators that the exporter translates.

They stand for QuantizeLinear and DequantizeLinear while a model is traced. The integers are int8 or
float32 then, and get their own types when the weights are attached.
"""

from typing import Any

import numpy as np
import onnx
import torch
from onnxscript import opset21
from torch import Tensor


@torch.library.custom_op("lrqat::dequantize", mutates_args=())
def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor | None, block: int) -> Tensor:
    """DequantizeLinear on integers [K, N]: blocked along K, or (block 0) one scale per column."""
    w, shape = q.to(scale.dtype), q.shape
    if block:
        w, scale = w.unflatten(0, (-1, block)), scale[:, None]
        zero_point = None if zero_point is None else zero_point[:, None]
    return (scale * (w if zero_point is None else w - zero_point)).reshape(shape)


@dequantize.register_fake
def _(q: Tensor, scale: Tensor, zero_point: Tensor | None, block: int) -> Tensor:
    return torch.empty(q.shape, dtype=scale.dtype, device=q.device)


@torch.library.custom_op("lrqat::dequantize_rows", mutates_args=())
def dequantize_rows(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, block: int, bits: int
) -> Tensor:
    """DequantizeLinear on rows (`exporters.onnx.weights.storage`), as [K, V]: only traced."""
    rows, columns = codes.shape
    return torch.zeros(columns * 8 // bits, rows, dtype=scale.dtype)


@dequantize_rows.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor | None, block: int, bits: int) -> Tensor:
    rows, columns = codes.shape
    return torch.empty(columns * 8 // bits, rows, dtype=scale.dtype, device=codes.device)


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


# onnxscript's types are those of one operator at a time; these are put together from several.
_ops: Any = opset21


def _translate_dequantize_rows(
    codes: Any, scale: Any, zero_point: Any, block: int, bits: int
) -> Any:
    """All that DequantizeLinear takes is computed once, when the model is loaded."""
    q = codes if bits == 8 else _translate_unpack(codes, bits)
    q, *rest = (_ops.Transpose(p, perm=[1, 0]) for p in (q, scale, zero_point) if p is not None)
    if not block:
        one = _ops.Constant(value_ints=[-1])
        rest = [_ops.Reshape(part, one) for part in rest]
    scale, *zero = rest
    if bits < 8:
        q, *zero = (_ops.Cast(part, to=onnx.TensorProto.INT4) for part in (q, *zero))
    where = {"axis": 0, "block_size": block} if block else {"axis": 1}
    return _ops.DequantizeLinear(q, scale, *zero, **where)


def _translate_unpack(codes: Any, bits: int) -> Any:
    """Integers, INT8 [V, K], of codes with several in a byte.

    Masked before they are shifted: OpenVINO (2026.4) shifts by a division that rounds.
    """
    parts, mask = [], (1 << bits) - 1
    for shift in range(0, 8, bits):
        alone = _ops.BitwiseAnd(codes, _constant(mask << shift, np.uint8))
        parts.append(_ops.BitShift(alone, _constant(shift, np.uint8), direction="RIGHT"))
    unsigned = _ops.Cast(_ops.Concat(*parts, axis=1), to=onnx.TensorProto.INT8)
    return _ops.Sub(unsigned, _constant(1 << bits - 1, np.int8))


def _constant(value: int, dtype: Any) -> Any:
    return _ops.Constant(value=onnx.numpy_helper.from_array(np.array(value, dtype)))


def _translate_quantize_dequantize(x: Any, scale: Any, zero_point: Any) -> Any:
    q = opset21.QuantizeLinear(x, scale, zero_point)
    return opset21.DequantizeLinear(q, scale, zero_point)


TRANSLATION: dict[Any, Any] = {
    torch.ops.lrqat.dequantize.default: _translate_dequantize,
    torch.ops.lrqat.dequantize_rows.default: _translate_dequantize_rows,
    torch.ops.lrqat.quantize_dequantize.default: _translate_quantize_dequantize,
}
