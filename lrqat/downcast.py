"""phi: the form in which the frozen part Phi0 = phi(W0 / s0) is kept during training.

Phi0 never changes, so it need not be kept in 32 bits: what matters is which integer it is near and
how near to the edge of rounding. Entries of the table:

    fp32    4 bytes   exact
    bf16    2 bytes   8 significant bits
    fixed   1 byte    fixed point Q(b).(8-b) in int8 (LR-QAT, "fixed_point8"): b bits for the
                      integer, 8-b for the fraction; values are clipped to the grid first, so how
                      far an outlier exceeds the grid is forgotten
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lrqat.grid import Grid


@dataclass(frozen=True)
class Downcast:
    """A form of Phi0: `encode` once at the start, `decode` in every forward and backward.

    Attributes:
        name: what `--phi` takes.
        dtype: torch dtype of the stored tensor.
        fraction: whether stored values are multiples of 2^-(8-b).
        summary: one line for `--help` and the documentation.
    """

    name: str
    dtype: torch.dtype
    fraction: bool
    summary: str

    def encode(self, latent: Tensor, grid: Grid) -> Tensor:
        """W0 / s0, float32 (out, in), to the stored form (out, in)."""
        if not self.fraction:
            return latent.to(self.dtype)
        clipped = latent.clamp(grid.q_min, grid.q_max)
        return clipped.mul_(_fixed_point_one(grid)).round_().to(self.dtype)

    def decode(self, stored: Tensor, grid: Grid, dtype: torch.dtype = torch.float32) -> Tensor:
        """A new tensor (out, in) of `dtype` (float32 in training) with the values stored."""
        decoded = stored.to(dtype, copy=True)
        return decoded.div_(_fixed_point_one(grid)) if self.fraction else decoded


def _fixed_point_one(grid: Grid) -> int:
    """The stored integer that stands for 1.0: 2^(8-b)."""
    return 1 << (8 - grid.bits)


DOWNCASTS: dict[str, Downcast] = {
    downcast.name: downcast
    for downcast in (
        Downcast("fp32", torch.float32, False, "float32, exact, 4 bytes a weight"),
        Downcast("bf16", torch.bfloat16, False, "bfloat16, 2 bytes a weight"),
        Downcast("fixed", torch.int8, True, "fixed point Q(b).(8-b), 1 byte a weight"),
    )
}
