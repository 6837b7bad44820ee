"""phi: the form in which the frozen part Phi0 = phi(W0 / s0) is kept during training.

Phi0 never changes, so it need not be kept in 32 bits: what matters is which integer it is near and
how near to the edge of rounding. Bytes a weight on a b-bit grid:

    fp32    4     exact
    bf16    2     8 significant bits
    fp16    2     11 significant bits
    fixed   1     fixed point Q(b).(8-b) in int8 (LR-QAT, "fixed_point8"): b bits for the integer,
                  8-b for the fraction; values are clipped to the grid first, so how far an outlier
                  exceeds the grid is forgotten
    int     b/8   the integer alone, packed: every weight starts at the centre of its step
                  (LR-QAT, "int"; its public code keeps these in a byte each)
"""

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from lrqat.grids.grid import Grid
from lrqat.grids.quantize import integers


class Downcast(Protocol):
    """A form of Phi0: `encode` once at the start, `decode` in every forward and backward.

    Attributes:
        name: what `--phi` takes.
        summary: one line for `--help` and the documentation.
        exact: whether the original weights can be had back.
    """

    name: str
    summary: str
    exact: bool

    def refuses(self, grid: Grid) -> str | None:
        """Why Phi0 on `grid` cannot be kept so, or None."""

    def columns(self, grid: Grid, in_features: int) -> int:
        """Stored elements of a row of `in_features` weights."""

    def dtype(self) -> torch.dtype:
        """Type of the stored elements."""

    def encode(self, latent: Tensor, grid: Grid) -> Tensor:
        """W0 / s0, float32 (out, in), to the stored form (out, columns)."""

    def decode(self, stored: Tensor, grid: Grid, in_features: int, dtype: torch.dtype) -> Tensor:
        """The values stored: (rows, in) of `dtype`, float32 in training.

        Not to be written to: it may be `stored` itself.
        """


class _Float:
    """A floating type of torch."""

    def __init__(self, name: str, dtype: torch.dtype, summary: str) -> None:
        self.name, self._dtype, self.summary = name, dtype, summary
        self.exact = dtype == torch.float32

    def refuses(self, grid: Grid) -> str | None:
        # float16 ends at 65504, and Phi0 of an outlier on a fine grid does not come near that.
        return None

    def columns(self, grid: Grid, in_features: int) -> int:
        return in_features

    def dtype(self) -> torch.dtype:
        return self._dtype

    def encode(self, latent: Tensor, grid: Grid) -> Tensor:
        return latent.to(self._dtype)

    def decode(self, stored: Tensor, grid: Grid, in_features: int, dtype: torch.dtype) -> Tensor:
        return stored.to(dtype)


class _FixedPoint:
    """Multiples of 2^-(8-b) in int8, counted from the middle of the grid's range."""

    name, summary, exact = "fixed", "fixed point Q(b).(8-b), 1 byte a weight", False

    def refuses(self, grid: Grid) -> str | None:
        if grid.levels is not None:
            return f"{grid.name} is a codebook, whose levels are not evenly spaced"
        if grid.bits > 7:
            return f"{grid.name} has {grid.bits} bits, which leave none of 8 for the fraction"
        return None

    def columns(self, grid: Grid, in_features: int) -> int:
        return in_features

    def dtype(self) -> torch.dtype:
        return torch.int8

    def encode(self, latent: Tensor, grid: Grid) -> Tensor:
        clipped = latent.clamp(grid.q_min, grid.q_max).sub_(self._middle(grid))
        return clipped.mul_(self._one(grid)).round_().clamp_(-128, 127).to(torch.int8)

    def decode(self, stored: Tensor, grid: Grid, in_features: int, dtype: torch.dtype) -> Tensor:
        return stored.to(dtype).div_(self._one(grid)).add_(self._middle(grid))

    def _one(self, grid: Grid) -> int:
        """The stored integer that stands for 1.0: 2^(8-b)."""
        return 1 << (8 - grid.bits)

    def _middle(self, grid: Grid) -> int:
        """0 for -8..7, 8 for 0..15: the stored numbers then use all of int8."""
        return 0 if grid.q_min < 0 else 1 << (grid.bits - 1)


class _PackedInteger:
    """Codes of b bits, several a byte.

    A code is cut into fields of 4, 2 and 1 bits (3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2), and each field
    is packed by itself: with n bytes to a row, byte i holds the fields of the weights i, i + n,
    i + 2n ..., so unpacking writes runs of consecutive weights.
    """

    name, summary, exact = "int", "the integer alone, packed: b/8 bytes a weight", False
    _WIDTHS: ClassVar = (8, 4, 2, 1)

    def refuses(self, grid: Grid) -> str | None:
        return None

    def columns(self, grid: Grid, in_features: int) -> int:
        return sum(-(-in_features * width // 8) for width, _ in self._fields(grid))

    def dtype(self) -> torch.dtype:
        return torch.uint8

    def encode(self, latent: Tensor, grid: Grid) -> Tensor:
        q = integers(latent.clone(), grid)
        codes = self._code(q, grid)
        parts = [_pack(codes >> shift, width) for width, shift in self._fields(grid)]
        return torch.cat(parts, dim=1)

    def decode(self, stored: Tensor, grid: Grid, in_features: int, dtype: torch.dtype) -> Tensor:
        codes = torch.zeros(len(stored), in_features, dtype=torch.uint8, device=stored.device)
        start = 0
        for width, shift in self._fields(grid):
            end = start - (-in_features * width // 8)
            _unpack_into(codes, stored[:, start:end], width, shift)
            start = end
        if grid.levels is None:
            return codes.to(dtype).add_(grid.q_min)
        return torch.tensor(grid.levels, dtype=dtype, device=stored.device)[codes.int()]

    def _fields(self, grid: Grid) -> list[tuple[int, int]]:
        """(width, shift) of each field, the lowest first."""
        fields, shift = [], 0
        for width in self._WIDTHS:
            if grid.bits & width:
                fields.append((width, shift))
                shift += width
        return fields

    def _code(self, q: Tensor, grid: Grid) -> Tensor:
        if grid.levels is None:
            return (q - grid.q_min).to(torch.uint8)
        levels = torch.tensor(grid.levels, dtype=q.dtype, device=q.device)
        return torch.bucketize(q, levels).to(torch.uint8)


def _pack(values: Tensor, width: int) -> Tensor:
    """The lowest `width` bits of uint8 (rows, n), 8 / width of them a byte: (rows, bytes)."""
    slots = 8 // width
    size = -(-values.shape[1] // slots)
    padded = torch.nn.functional.pad(
        values & ((1 << width) - 1), (0, size * slots - values.shape[1])
    )
    packed = padded[:, :size].clone()
    for slot in range(1, slots):
        packed |= padded[:, slot * size : (slot + 1) * size] << (slot * width)
    return packed


def _unpack_into(codes: Tensor, packed: Tensor, width: int, shift: int) -> None:
    """Add the fields of `packed` to uint8 `codes` (rows, n), `shift` bits up."""
    size, mask = packed.shape[1], (1 << width) - 1
    for slot in range(8 // width):
        target = codes[:, slot * size : (slot + 1) * size]
        target |= ((packed[:, : target.shape[1]] >> (slot * width)) & mask) << shift


DOWNCASTS: dict[str, Downcast] = {
    downcast.name: downcast
    for downcast in (
        _Float("fp32", torch.float32, "float32, exact, 4 bytes a weight"),
        _Float("bf16", torch.bfloat16, "bfloat16, 2 bytes a weight"),
        _Float("fp16", torch.float16, "float16, 2 bytes a weight"),
        _FixedPoint(),
        _PackedInteger(),
    )
}


def downcast_for(name: str, grid: Grid) -> Downcast:
    """The form called `name`, or bfloat16 for a grid that has no such form."""
    chosen = DOWNCASTS[name]
    return DOWNCASTS["bf16"] if chosen.refuses(grid) else chosen
