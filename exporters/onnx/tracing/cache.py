"""The key-value cache as the graph takes and returns it, and its rounding.

A cache that was rounded in training (`lrqat.activations.kv_cache`) is rounded token by token, when
the token comes: after that it is only read. What is passed on is either the values, as floats, or
what they are made of:

    key             UINT8 [batch, kv_heads, tokens, head_dim]    q; of 4 bits, head_dim / 2 bytes:
                                                                 the first half of the head in the
                                                                 lower bits, the second in the upper
    key_scale       FLOAT [batch, kv_heads, tokens, 1]
    key_zero_point  UINT8 [batch, kv_heads, tokens, 1]           key = scale * (q - zero_point)

and the same for values. (ONNX has 4-bit types, but nothing concatenates them.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from lrqat.activations.grids import quantize, row_ranges, to_integers
from lrqat.activations.table import ActivationGrid, find_activation_grid
from lrqat.errors import ExportRefusedError


@dataclass(frozen=True)
class CachePart:
    """One tensor of the cache of a layer, [batch, kv_heads, tokens, width].

    Attributes:
        name: "key", "value", "key_scale" ...
        dtype: None: that of the model.
        width: from the size of a head to the last dimension.
    """

    name: str
    dtype: torch.dtype | None = None
    width: Callable[[int], int] = lambda head_size: head_size


@dataclass(frozen=True)
class CacheForm:
    """What the graph passes on.

    Attributes:
        parts: of every layer, in order.
        layer: makes an empty layer of a transformers cache.
        load: puts the parts into it.
        parts_of: takes them out again.
    """

    parts: tuple[CachePart, ...]
    layer: Callable[[], DynamicLayer]
    load: Callable[[DynamicLayer, Sequence[Tensor]], None]
    parts_of: Callable[[DynamicLayer], list[Tensor]]


def cache_form(bits: int | None, integers: bool) -> CacheForm:
    """The form of a cache that was rounded to `bits` (None: not), passed on as integers or not."""
    if bits is None:
        return CacheForm(_FLOATS, DynamicLayer, _load, _floats)
    grid = find_activation_grid(f"int{bits}-token")
    if not integers:
        return CacheForm(_FLOATS, lambda: RoundedLayer(grid), _load, _floats)

    def codes(head_size: int) -> int:
        if head_size * bits % 8:
            raise ExportRefusedError(
                f"heads of {head_size} numbers of {bits} bits are no whole bytes; use --kv-cache "
                "float"
            )
        return head_size * bits // 8

    parts = tuple(
        part
        for name in ("key", "value")
        for part in (
            CachePart(name, torch.uint8, codes),
            CachePart(f"{name}_scale", torch.float32, lambda head_size: 1),
            CachePart(f"{name}_zero_point", torch.uint8, lambda head_size: 1),
        )
    )
    return CacheForm(parts, lambda: IntegerLayer(grid), _load_integers, _integers)


class RoundedLayer(DynamicLayer):
    """Keeps rounded values."""

    def __init__(self, grid: ActivationGrid) -> None:
        super().__init__()
        self.grid = grid

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add new tokens (batch, kv_heads, tokens, head_dim); returns all, rounded."""
        rounded = quantize(key_states, self.grid), quantize(value_states, self.grid)
        return super().update(*rounded, *args, **kwargs)


class IntegerLayer(DynamicLayer):
    """Keeps bytes of integers, scales and zero-points; `keys` and `values` are the bytes."""

    def __init__(self, grid: ActivationGrid) -> None:
        super().__init__()
        self.grid = grid
        self.parts: list[Tensor] = []  # bytes, scale and zero-point of keys, then of values

    def fill(self, parts: Sequence[Tensor]) -> None:
        """Take what was passed on for this layer."""
        self.parts = list(parts)
        _load(self, (parts[0], parts[3]))

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add new tokens (batch, kv_heads, tokens, head_dim); returns all, rounded."""
        new = self._parts(key_states) + self._parts(value_states)
        self.fill([torch.cat(pair, dim=-2) for pair in zip(self.parts, new, strict=True)])
        key, value = self._values(*self.parts[:3]), self._values(*self.parts[3:])
        return key.to(key_states.dtype), value.to(value_states.dtype)

    def _parts(self, x: Tensor) -> list[Tensor]:
        wide = x.float()
        ranges = row_ranges(wide, self.grid)
        q = to_integers(wide, self.grid, ranges)
        return [_pack(q, self.grid.bits), ranges.scale, ranges.zero_point.to(torch.uint8)]

    def _values(self, codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return (_unpack(codes, self.grid.bits) - zero_point.float()) * scale


def _pack(q: Tensor, bits: int) -> Tensor:
    """Integers (..., head_dim) in float32 to bytes: uint8 (..., head_dim * bits / 8)."""
    if bits == 4:
        low, high = q.chunk(2, dim=-1)
        q = low + 16 * high
    return q.to(torch.uint8)


def _unpack(codes: Tensor, bits: int) -> Tensor:
    """Undo `_pack`."""
    q = codes.float()
    if bits == 4:
        high = (q * 0.0625).floor()
        q = torch.cat([q - 16 * high, high], dim=-1)
    return q


_FLOATS = (CachePart("key"), CachePart("value"))


def _load(layer: DynamicLayer, parts: Sequence[Tensor]) -> None:
    layer.keys, layer.values = parts
    layer.dtype, layer.device = parts[0].dtype, parts[0].device
    layer.is_initialized = True


def _floats(layer: DynamicLayer) -> list[Tensor]:
    assert layer.keys is not None
    assert layer.values is not None
    return [layer.keys, layer.values]


def _load_integers(layer: DynamicLayer, parts: Sequence[Tensor]) -> None:
    assert isinstance(layer, IntegerLayer)
    layer.fill(parts)


def _integers(layer: DynamicLayer) -> list[Tensor]:
    assert isinstance(layer, IntegerLayer)
    return layer.parts
