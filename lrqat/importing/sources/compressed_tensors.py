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
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrqat.errors import ModelError
from lrqat.importing.sources.bits import unpack
from lrqat.importing.sources.fp4 import mxfp4, nvfp4
from lrqat.importing.sources.integers import Integers
from lrqat.importing.sources.parts import (
    BYTES,
    FLOAT8,
    FLOATS,
    INDICES,
    WORDS,
    Parts,
    name_of,
)
from lrqat.recipes.patterns import MOST_WAYS, ways

_PATTERN = "re:"
_PACKED, _SCALE = ".weight_packed", ".weight_scale"
_BITS, _FLOAT_BITS = (2, 4, 8), 4
_INSTEAD = "import a model that was written with 2, 4 or 8 bits, or train from its original"


class CompressedTensors:
    """The `Layout`."""

    kind = "compressed-tensors"

    def __init__(self, settings: dict[str, Any]) -> None:
        """From `quantization_config`. Raises ModelError for what is not understood."""
        groups = settings.get("config_groups")
        if not isinstance(groups, dict) or not groups:
            raise ModelError("quantization_config of compressed-tensors has no config_groups")
        form = settings.get("format")
        self._groups = [_Group.of(name, said, form) for name, said in groups.items()]
        self.notes = [
            f"its activations were rounded too, which the checkpoint does not do: {said:.20} bits"
            for said in (group.activations for group in self._groups)
            if said
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

    def read(self, parts: Parts) -> tuple[Integers, str]:
        """See `Layout`."""
        group = self._group(parts.module)
        bits, form = group.weights.get("num_bits"), group.form
        if type(bits) is not int or bits not in _BITS:
            raise ModelError(
                f"{parts.module} has {bits!r:.40} bits, of which there are several layouts; "
                f"{_INSTEAD}"
            )
        if group.weights.get("type") == "float":
            return _floats(parts, bits), form
        order = parts.get("weight_g_idx", INDICES, 1)
        if order is not None and not _in_order(order):
            raise ModelError(
                f"{parts.module} has its columns in another order (weight_g_idx), which no "
                "runtime's file has a place for; quantize again without activation ordering"
            )
        q = _integers(parts, bits)
        stored = parts.need("weight_scale", FLOATS, 0, 1, 2)
        rows = _rows_of_a_scale(parts, group.weights, q, stored)
        scale = _spread(stored, len(q), rows)
        size = parts.group_size(q.shape[1], scale.shape[1])
        if len(scale) != len(q):
            raise parts.refusal(f"{len(scale)} rows of scales for {len(q)} of integers")
        symmetric = group.weights.get("symmetric") is not False
        if not symmetric:
            zero = _zero_points(parts, bits, stored, scale, rows)
            q = q.to(torch.int16) - zero.repeat_interleave(size, 1)
        by = f"groups of {size}" if scale.shape[1] > 1 else "one scale a row"
        by = by if rows == 1 else f"blocks of {rows} x {size}"
        offset = "" if symmetric else ", zero-points"
        said = f"{form}, {bits} bits, {by}{offset}, {name_of(scale.dtype)} scales"
        return Integers(q.to(torch.int16), scale, bits, symmetric), said

    def _group(self, module: str) -> "_Group":
        """By name, by pattern, and else by class: all modules that are quantized are linear."""
        for group in self._groups:
            if module in group.targets or any(p.match(module) for p in group.patterns):
                return group
        for group in self._groups:
            if "Linear" in group.targets:
                return group
        if len(self._groups) == 1:
            return self._groups[0]
        raise ModelError(f"quantization_config does not say how {module} is quantized")


@dataclass(frozen=True)
class _Group:
    """What `config_groups` says of some modules.

    Attributes:
        targets: their names or classes.
        patterns: regular expressions that their names begin with.
        weights: how their weights are stored.
        form: the layout's name.
        activations: bits of their activations, for people; "": these are not rounded.
    """

    targets: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]
    weights: dict[str, Any]
    form: str
    activations: str

    @classmethod
    def of(cls, name: str, said: Any, form: Any) -> "_Group":
        """One group. Raises ModelError for what is no group."""
        said = said if isinstance(said, dict) else {}
        targets, weights = said.get("targets") or [], said.get("weights")
        if not isinstance(targets, list) or not isinstance(weights, dict):
            raise ModelError(
                f"quantization_config's group {name!r:.60} does not say what it is for (targets) "
                "and how weights are stored (weights); use an intact copy"
            )
        names = frozenset(str(target) for target in targets)
        inputs = said.get("input_activations")
        return cls(
            frozenset(each for each in names if not each.startswith(_PATTERN)),
            tuple(_compiled(each.removeprefix(_PATTERN)) for each in sorted(names)
                  if each.startswith(_PATTERN)),
            weights,
            f"{said.get('format') or form!s:.40}",
            str(inputs.get("num_bits")) if isinstance(inputs, dict) else "",
        )  # fmt: skip


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        if ways(pattern) <= MOST_WAYS:
            return re.compile(pattern)
        reason = "it could match in too many ways"
    except ValueError as error:
        reason = str(error)
    raise ModelError(
        f"quantization_config names modules by {pattern!r:.100}, which is not searched for: "
        f"{reason}; write the names of the modules into its targets"
    )


def _floats(parts: Parts, bits: int) -> Integers:
    packed = parts.get("weight_packed", BYTES, 2) if bits == _FLOAT_BITS else None
    if packed is None:
        raise ModelError(
            f"{parts.module} is stored in floats of {bits} bits, which no grid has; train from the "
            "floating-point original"
        )
    shared = parts.number("weight_global_scale")
    if shared is not None:
        # compressed-tensors divides by it, ModelOpt multiplies with its reciprocal.
        return nvfp4(parts, packed, parts.need("weight_scale", FLOAT8, 2), 1 / shared)
    return mxfp4(parts, packed, parts.need("weight_scale", BYTES, 2))


def _in_order(order: Tensor) -> bool:
    return bool((order[1:] >= order[:-1]).all()) or bool((order < 0).all())


def _integers(parts: Parts, bits: int) -> Tensor:
    """(out, in), packed or one by one."""
    packed = parts.get("weight_packed", WORDS, 2)
    if packed is None:
        return parts.need("weight", (torch.int8,), 2)
    shape = parts.need("weight_shape", INDICES, 1).tolist()
    if len(shape) != 2 or len(packed) != shape[0] or shape[1] < 1:
        raise parts.refusal(f"packed integers of another shape than {shape}")
    return _unpacked(parts, packed, bits, shape[1]) - (1 << bits - 1)


def _rows_of_a_scale(parts: Parts, said: dict[str, Any], q: Tensor, scale: Tensor) -> int:
    """How many rows share a scale: of the strategy "block", the height of a block, and else 1.

    Source: compressed_tensors/quantization/lifecycle/forward.py, QuantizationStrategy.BLOCK.
    """
    if said.get("strategy") != "block":
        return 1
    block = said.get("block_structure")
    if (
        not isinstance(block, list)
        or [type(side) for side in block] != [int, int]
        or min(block) < 1
    ):
        raise parts.refusal(f"blocks of {block!r:.40} (block_structure) and not of [height, width]")
    height, width = block
    if tuple(scale.shape) != (-(-len(q) // height), -(-q.shape[1] // width)) or q.shape[1] % width:
        raise parts.refusal(
            f"{tuple(scale.shape)} scales for {tuple(q.shape)} integers in blocks of {block}"
        )
    return height


def _zero_points(parts: Parts, bits: int, scales: Tensor, scale: Tensor, rows: int) -> Tensor:
    """Of every scale: int16 (out, groups); `scales` are those that are stored."""
    stored = parts.need("weight_zero_point", (torch.int8, *WORDS), 0, 1, 2)
    if stored.dtype == torch.int32 and stored.ndim == 2:
        words = stored.T.contiguous()
        stored = _unpacked(parts, words, bits, len(scales)).T - (1 << bits - 1)
    zero = _spread(stored, len(scale), rows)
    if zero.shape != scale.shape:
        raise parts.refusal(f"{tuple(zero.shape)} zero-points for {tuple(scale.shape)} scales")
    return zero.to(torch.int16)


def _unpacked(parts: Parts, words: Tensor, bits: int, count: int) -> Tensor:
    try:
        return unpack(words, bits, count)
    except ValueError as error:
        raise parts.refusal(str(error)) from None


def _spread(part: Tensor, out: int, rows: int = 1) -> Tensor:
    """Of a tensor, of rows, or of blocks of some rows, as (out, groups)."""
    part = part.reshape(1, 1) if part.numel() == 1 else part
    part = part[:, None] if part.ndim == 1 else part
    part = part.repeat_interleave(rows, 0)[:out] if rows > 1 else part
    return part.expand(out, -1) if len(part) == 1 else part
