"""GPTQ and AWQ, and auto-round, which packs like either.

    GPTQ   qweight int32 (in * bits / 32, out), packed along the inputs
           qzeros  int32 (groups, out * bits / 32): zero-points, less 1 in version 1
           scales  (groups, out);  g_idx int32 (in), the group of every input
    AWQ    qweight int32 (in, out * bits / 32), packed along the outputs, eight of a word in the
           order 0 2 4 6 1 3 5 7; of 8 bits, four in the order 0 2 1 3
           qzeros  int32 (groups, out * bits / 32), the same;  scales (groups, out)

    weight = scale * (q - zero-point), both from 0

Sources: gptqmodel, nn_modules/qlinear/__init__.py; awq, modules/linear/gemm.py; vLLM,
marlin_utils.py `awq_to_marlin_zero_points` (8 bits); auto_round,
export/export_to_autoround/export.py `dynamic_import_quant_linear_for_packing`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lrqat.errors import ModelError
from lrqat.importing.sources.bits import unpack
from lrqat.importing.sources.integers import Integers
from lrqat.importing.sources.parts import FLOATS, INDICES, WORDS, Parts

_WEIGHT = ".qweight"
_GPTQ_BITS = (2, 3, 4, 8)
# Where the integers of an AWQ word are, by their bits.
_ORDERS = {4: (0, 4, 1, 5, 2, 6, 3, 7), 8: (0, 2, 1, 3)}


class _Packed(ABC):
    """What the two have in common."""

    kind = ""
    _known: tuple[int, ...] = ()

    def __init__(self, settings: dict[str, Any]) -> None:
        """From `quantization_config`. Raises ModelError for bits that it does not have."""
        self.notes: list[str] = []
        bits = settings.get("bits", settings.get("w_bit"))
        if type(bits) is not int or bits not in self._known:
            raise ModelError(
                f"{self.kind} of {bits!r:.40} bits is not read here, but of "
                f"{', '.join(map(str, self._known))}; train from the floating-point original"
            )
        self._bits = bits
        self._symmetric = settings.get("sym") is True or settings.get("zero_point") is False

    def modules(self, names: Iterable[str]) -> set[str]:
        """See `Layout`."""
        return {name.removesuffix(_WEIGHT) for name in names if name.endswith(_WEIGHT)}

    def read(self, parts: Parts) -> tuple[Integers, str]:
        """See `Layout`."""
        words, zeros = parts.need("qweight", WORDS, 2), parts.need("qzeros", WORDS, 2)
        scales = parts.need("scales", FLOATS, 2)
        bits, groups, outputs = self._bits, *scales.shape
        try:
            q, zero = self._unpack(words, bits, outputs), self._unpack_zeros(zeros, bits, outputs)
        except ValueError as error:
            raise ModelError(
                f"{parts.module}: {error} of {bits} bits; bits by module are not read here"
            ) from None
        size = parts.group_size(q.shape[1], groups)
        if zero.shape != scales.shape:
            raise parts.refusal(f"{tuple(zero.shape)} zero-points for {tuple(scales.shape)} scales")
        self._refuse_order(parts, q.shape[1], size)
        # Symmetric models have one zero-point in the middle.
        symmetric = bool((zero == 1 << bits - 1).all())
        if self._symmetric and not symmetric:
            raise ModelError(
                f"{parts.module} is said to be symmetric, and its zero-points are "
                f"{int(zero.min())} to {int(zero.max())}: the file is of another version than it "
                "says"
            )
        shifted = q - zero.T.to(torch.int16).repeat_interleave(size, 1)
        offset = "" if symmetric else ", zero-points"
        said = f"{self.kind}, {bits} bits, groups of {size}{offset}"
        return Integers(shifted, scales.T.contiguous(), bits, symmetric), said

    @abstractmethod
    def _unpack(self, words: Tensor, bits: int, outputs: int) -> Tensor:
        """Int16 (out, in)."""

    @abstractmethod
    def _unpack_zeros(self, words: Tensor, bits: int, outputs: int) -> Tensor:
        """Int16 (groups, out)."""

    def _refuse_order(self, parts: Parts, columns: int, size: int) -> None:
        """Inputs that are grouped by their importance lie apart in a row."""
        order = parts.get("g_idx", INDICES, 1)
        if order is not None and not torch.equal(order.long(), torch.arange(columns) // size):
            raise ModelError(
                f"{parts.module} has its inputs grouped in another order (g_idx, desc_act), which "
                "no runtime's file has a place for; quantize again with desc_act=False"
            )


class Gptq(_Packed):
    """The `Layout` of GPTQ; versions 1 and 2."""

    kind, _known = "GPTQ", _GPTQ_BITS

    def __init__(self, settings: dict[str, Any]) -> None:
        """From `quantization_config`."""
        super().__init__(settings)
        self._less = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1

    def _unpack(self, words: Tensor, bits: int, outputs: int) -> Tensor:
        if words.ndim != 2 or words.shape[1] != outputs or len(words) * 32 % bits:
            raise ValueError(f"{tuple(words.shape)} words are none of {outputs} outputs")
        return unpack(words.T.contiguous(), bits, len(words) * 32 // bits)

    def _unpack_zeros(self, words: Tensor, bits: int, outputs: int) -> Tensor:
        return unpack(words, bits, outputs) + self._less


class Awq(_Packed):
    """The `Layout` of AWQ (GEMM)."""

    kind, _known = "AWQ", tuple(_ORDERS)

    def __init__(self, settings: dict[str, Any]) -> None:
        """From `quantization_config`. Raises ModelError for other layouts than GEMM."""
        super().__init__(settings)
        version = str(settings.get("version", "gemm")).lower()
        if version != "gemm":
            raise ModelError(f"AWQ's layout {version} is not read here; write the model as GEMM")

    def _unpack(self, words: Tensor, bits: int, outputs: int) -> Tensor:
        return self._unpack_zeros(words, bits, outputs).T.contiguous()

    def _unpack_zeros(self, words: Tensor, bits: int, outputs: int) -> Tensor:
        if words.ndim != 2 or words.shape[1] * 32 != outputs * bits:
            raise ValueError(f"{tuple(words.shape)} words are none of {outputs} outputs")
        order = list(_ORDERS[bits])
        found = unpack(words, bits, outputs).view(len(words), -1, len(order))
        return found[:, :, order].reshape(len(words), outputs)


def auto_round(settings: dict[str, Any]) -> "Gptq | Awq":
    """The layout of an auto-round model, by its packing. Raises ModelError for others."""
    packing = str(settings.get("packing_format", "auto_round:auto_gptq"))
    if "awq" in packing:
        return Awq(settings)
    if packing in ("auto_round", "auto_round:gptqmodel", "auto_round:auto_gptq", "auto_round:gptq"):
        is_v1 = packing.endswith(("auto_gptq", ":gptq"))
        return Gptq(settings | {"checkpoint_format": "gptq" if is_v1 else "gptq_v2"})
    raise ModelError(
        f"auto-round's packing {packing!r:.60} is not read here; export the model as auto_gptq, "
        "auto_awq or llm_compressor"
    )
