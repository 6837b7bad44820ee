"""4-bit floats: NVFP4 of compressed-tensors and ModelOpt, MXFP4 of compressed-tensors.

    byte j of a row    code[2j] | code[2j+1] << 4
    code               sign << 3 | index of 0, 0.5, 1, 1.5, 2, 3, 4, 6
    NVFP4              weight = value * E4M3 scale * one float32 of the tensor
    MXFP4              weight = value * 2^(e - 127)

The grids' levels are twice these values, so that their scales are half of these. All of NVFP4's
scales must be multiples of a power of two by an 8-bit float: where the float32 of the tensor is not
a power of two, no grid holds them. Source: compressed_tensors, compressors/nvfp4/helpers.py and
mx_utils.py; modelopt, torch/quantization/qtensor/nvfp4_tensor.py.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lrqat.errors import ModelError
from lrqat.importing.sources.integers import Integers
from lrqat.importing.sources.parts import BYTES, FLOAT8, Parts

_LEVELS = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]).to(torch.int16)
_BITS = 4


def nvfp4(parts: Parts, packed: Tensor, scale: Tensor, shared: float | None) -> Integers:
    """A matrix in NVFP4, which multiplies out to bfloat16.

    Args:
        parts: whose they are.
        packed: uint8 (out, in / 2).
        scale: float8_e4m3fn (out, in / 16).
        shared: the float32 of the tensor, that is multiplied with.

    Raises:
        ModelError: shapes that do not belong together, or no such float32.
    """
    if shared is None:
        raise parts.refusal("no scale of the tensor")
    q = _levels(parts, packed, scale, 16)
    half = scale.float() * (shared / 2)
    if math.frexp(shared)[0] == 0.5:
        return Integers(q, half, _BITS, levels=True, tensor_scale=shared / 2, dtype=torch.bfloat16)
    # Levels up to 12 are integers of 5 bits; the products, rounded, may be those of other scales.
    return Integers(q, half, 5, dtype=torch.bfloat16)


def mxfp4(parts: Parts, packed: Tensor, exponents: Tensor) -> Integers:
    """A matrix in MXFP4: packed uint8 (out, in / 2), exponents uint8 (out, in / 32)."""
    q = _levels(parts, packed, exponents, 32)
    scale = torch.ldexp(torch.ones(exponents.shape), exponents.to(torch.int32) - 128)
    return Integers(q, scale, _BITS, levels=True, dtype=torch.bfloat16)


def _levels(parts: Parts, packed: Tensor, scale: Tensor, size: int) -> Tensor:
    if packed.shape[1] * 2 != scale.shape[1] * size or len(packed) != len(scale):
        raise parts.refusal(
            f"4-bit floats {tuple(packed.shape)} that do not belong to its scales "
            f"{tuple(scale.shape)}"
        )
    codes = torch.stack([packed & 15, packed >> 4], 2).flatten(1)
    return _LEVELS[codes.to(torch.int32)]


class ModelOpt:
    """The `Layout` of NVFP4 as ModelOpt writes it: weight uint8, weight_scale, weight_scale_2."""

    kind = "ModelOpt"

    def __init__(self, settings: dict[str, Any]) -> None:
        """From `quantization_config`. Raises ModelError for other formats than NVFP4."""
        inner = settings.get("quantization")
        said = settings.get("quant_algo")
        if not said and isinstance(inner, dict):
            said = inner.get("quant_algo")
        if said != "NVFP4":
            raise ModelError(
                f"ModelOpt's {said!r:.40} has no grid; train from the floating-point original"
            )
        self.notes = ["its activations were rounded too, which the checkpoint does not do"]

    def modules(self, names: Iterable[str]) -> set[str]:
        """See `Layout`."""
        end = ".weight_scale_2"
        return {name.removesuffix(end) for name in names if name.endswith(end)}

    def read(self, parts: Parts) -> tuple[Integers, str]:
        """See `Layout`."""
        packed, scale = parts.need("weight", BYTES, 2), parts.need("weight_scale", FLOAT8, 2)
        return nvfp4(parts, packed, scale, parts.number("weight_scale_2")), "NVFP4"
