"""compressed-tensors, as llm-compressor, vLLM and we write it.

    pack-quantized        weight_packed int32, weight_shape, weight_scale, weight_zero_point packed
                          along the rows' dimension
    int-quantized,        weight int8, weight_scale, weight_zero_point int8
    naive-quantized
    nvfp4-pack-quantized, `lrqat.importing.sources.fp4`
    mxfp4-pack-quantized

Integers are stored as q + 2^(bits-1). Which bits a module has is said by the group of
`quantization_config` whose targets name it, or its class. Source: compressed_tensors,
compressors/*/base.py, utils/match.py.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lrqat.errors import ModelError
from lrqat.importing.sources.bits import unpack
from lrqat.importing.sources.fp4 import mxfp4, nvfp4
from lrqat.importing.sources.integers import Integers

Load = Callable[[str], Tensor | None]

_PACKED, _SCALE = ".weight_packed", ".weight_scale"
_BITS = (2, 4, 8)
_INSTEAD = "import a model that was written with 2, 4 or 8 bits, or train from its original"


class CompressedTensors:
    """The `Layout`."""

    kind = "compressed-tensors"

    def __init__(self, settings: dict[str, Any]) -> None:
        """From `quantization_config`. Raises ModelError for what is not understood."""
        groups = settings.get("config_groups")
        if not isinstance(groups, dict) or not all(isinstance(g, dict) for g in groups.values()):
            raise ModelError("quantization_config of compressed-tensors has no config_groups")
        self._groups, self._format = list(groups.values()), settings.get("format")
        self.notes = [
            "its activations were rounded too, which the checkpoint does not do: "
            f"{group['input_activations'].get('num_bits')} bits"
            for group in self._groups
            if isinstance(group.get("input_activations"), dict)
        ][:1]
        if settings.get("transform_config"):
            raise ModelError(
                "it has transforms beside its weights (transform_config), and no runtime's file "
                "has a place for them; import a model without"
            )

    def modules(self, names: Iterable[str]) -> set[str]:
        """See `Layout`."""
        known = set(names)
        ends = (n.removesuffix(_PACKED) for n in known if n.endswith(_PACKED))
        scaled = (n.removesuffix(_SCALE) for n in known if n.endswith(_SCALE))
        return {*ends, *(module for module in scaled if f"{module}.weight" in known)}

    def read(self, load: Load, module: str) -> tuple[Integers, str]:
        """See `Layout`."""
        group = self._group(module)
        weights = group.get("weights")
        bits = weights.get("num_bits") if isinstance(weights, dict) else None
        if not isinstance(weights, dict) or bits not in _BITS:
            raise ModelError(
                f"{module} has {bits} bits, of which there are several layouts; {_INSTEAD}"
            )
        form = group.get("format") or self._format
        if weights.get("type") == "float":
            return self._floats(load, module, str(form), bits)
        if load("weight_g_idx") is not None and not _in_order(load("weight_g_idx")):
            raise ModelError(
                f"{module} has its columns in another order (weight_g_idx), which no runtime's "
                "file has a place for; quantize again without activation ordering"
            )
        q = _packed(load, module, bits) if load("weight_packed") is not None else load("weight")
        scale = load("weight_scale")
        if q is None or q.dtype not in (torch.int8, torch.int16) or scale is None or scale.ndim > 2:
            raise ModelError(f"{module} has no integers with scales by group, row or tensor")
        scale = _spread(scale, len(q))
        symmetric = weights.get("symmetric") is not False
        if not symmetric:
            q = q.to(torch.int16) - _zero_points(load, module, bits, q, scale)
        size = q.shape[1] // scale.shape[1]
        by = f"groups of {size}" if scale.shape[1] > 1 else "one scale a row"
        offset = "" if symmetric else ", zero-points"
        said = f"{form}, {bits} bits, {by}{offset}, {_name(scale.dtype)} scales"
        return Integers(q.to(torch.int16), scale, bits, symmetric), said

    def _group(self, module: str) -> dict[str, Any]:
        """By name, by pattern, and else by class: all modules that are quantized are linear."""
        for group in self._groups:
            targets = [str(target) for target in group.get("targets") or ()]
            patterns = [t.removeprefix("re:") for t in targets if t.startswith("re:")]
            if module in targets or any(re.match(pattern, module) for pattern in patterns):
                return group
        for group in self._groups:
            if "Linear" in (group.get("targets") or ()):
                return group
        if len(self._groups) == 1:
            return self._groups[0]
        raise ModelError(f"quantization_config does not say how {module} is quantized")

    def _floats(self, load: Load, module: str, form: str, bits: int) -> tuple[Integers, str]:
        packed, scale, shared = (
            load(f"weight_{end}") for end in ("packed", "scale", "global_scale")
        )
        if bits == 4 and packed is not None and scale is not None:
            if shared is not None:
                # compressed-tensors divides by it, ModelOpt multiplies with its reciprocal.
                return nvfp4(packed, scale, 1 / float(shared), torch.bfloat16), form
            return mxfp4(packed, scale, torch.bfloat16), form
        raise ModelError(
            f"{module} is stored in floats of {bits} bits, which no grid has; train from the "
            "floating-point original"
        )


def _in_order(order: Tensor | None) -> bool:
    return order is None or bool((order[1:] >= order[:-1]).all()) or bool((order < 0).all())


def _packed(load: Load, module: str, bits: int) -> Tensor:
    packed, shape = load("weight_packed"), load("weight_shape")
    if packed is None or shape is None or shape.numel() != 2:
        raise ModelError(f"{module} has no weight_shape of a matrix")
    rows, columns = (int(size) for size in shape)
    if packed.ndim != 2 or len(packed) != rows or columns < 1:
        raise ModelError(f"{module} has packed integers of another shape than {(rows, columns)}")
    return _unpacked(packed, bits, columns, module) - (1 << bits - 1)


def _zero_points(load: Load, module: str, bits: int, q: Tensor, scale: Tensor) -> Tensor:
    """One for every weight: int16, (out, in)."""
    stored = load("weight_zero_point")
    if stored is None:
        raise ModelError(f"{module} has no weight_zero_point, and quantization_config asks for one")
    if stored.dtype == torch.int32:
        stored = _unpacked(stored.T.contiguous(), bits, len(q), module).T - (1 << bits - 1)
    zero = _spread(stored, len(q)).to(torch.int16)
    if zero.shape != scale.shape:
        raise ModelError(f"{module} has {tuple(zero.shape)} zero-points for {tuple(scale.shape)}")
    return zero.repeat_interleave(q.shape[1] // scale.shape[1], 1)


def _unpacked(words: Tensor, bits: int, count: int, module: str) -> Tensor:
    try:
        return unpack(words, bits, count)
    except ValueError as error:
        raise ModelError(f"{module}: {error}; use an intact copy") from None


def _spread(part: Tensor, rows: int) -> Tensor:
    """Of a tensor, or of rows, as (out, groups)."""
    part = part.reshape(1, 1) if part.numel() == 1 else part
    part = part[:, None] if part.ndim == 1 else part
    return part.expand(rows, -1) if len(part) == 1 else part


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
