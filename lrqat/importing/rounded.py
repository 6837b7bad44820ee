"""Groups of weights, and what each may have been before it was rounded to its type."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Significant bits, and the exponent of the smallest subnormal number.
_DIGITS = {torch.bfloat16: (8, -133), torch.float16: (11, -24), torch.float32: (24, -149)}
_EXPONENT, _FRACTION = 0x7F800000, 0x007FFFFF  # bits of a float32
KNOWN = tuple(_DIGITS)


@dataclass(frozen=True)
class Rounded:
    """Some groups.

    Attributes:
        value: float32 (n, size), exact.
        dtype: the type that they were rounded to.
    """

    value: Tensor
    dtype: torch.dtype

    def __getitem__(self, rows: Tensor | slice) -> "Rounded":
        """Some of the groups."""
        return Rounded(self.value[rows], self.dtype)

    @property
    def is_coarse(self) -> bool:
        """Whether the rounding reaches the step of a grid of 8 bits."""
        return self.dtype == torch.bfloat16

    def ends(self) -> tuple[Tensor, Tensor]:
        """The least and the largest number that is rounded to each weight: float32 (n, size)."""
        digits, least = _DIGITS[self.dtype]
        bits = self.value.view(torch.int32)
        if self.dtype == torch.bfloat16:
            return self._ends_of_bfloat16(bits)
        power = (bits & _EXPONENT).view(torch.float32)  # the power of two at or below
        half = (power * 2.0**-digits).clamp_min_(2.0**least / 2)
        # What lies halfway is rounded to even: of an odd weight, the ends are not.
        odd = (bits >> 24 - digits) & 1 if digits < 24 else torch.zeros_like(bits)
        half *= 1 - odd * 2.0**-10
        # Below a power of two the numbers lie twice as close.
        inner = torch.where((bits & _FRACTION) == 0, half / 2, half)
        above = self.value > 0
        low = self.value - torch.where(above, inner, half)
        return low, self.value + torch.where(above, half, inner)

    def _ends_of_bfloat16(self, bits: Tensor) -> tuple[Tensor, Tensor]:
        """The same in fewer operations: a bfloat16 is the upper half of a float32.

        As a whole number, the bits of a float32 count up with its magnitude, subnormal numbers and
        the steps at powers of two included.
        """
        half = ((bits >> 11) & 32).neg_().add_(1 << 15)  # 2^-10 of it less where bit 16 is set
        outer = (bits + half).view(torch.float32)
        inner = torch.where(self.value == 0, -outer, (bits - half).view(torch.float32))
        return torch.minimum(inner, outer), torch.maximum(inner, outer)

    def equal(self, products: Tensor) -> Tensor:
        """Which weights products float32 (n, size) are rounded to, as bool (n, size)."""
        if self.dtype == torch.float32:
            return products == self.value
        return products.to(self.dtype).to(torch.float32) == self.value

    def extremum(self) -> Tensor:
        """The value with the largest magnitude of each group, with its sign: (n,)."""
        at = self.value.abs().argmax(1, keepdim=True)
        return self.value.gather(1, at).squeeze(1)
