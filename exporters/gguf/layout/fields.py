"""What a block type stores of a matrix, number by number, before it is laid out in bytes.

    codes               one for each weight, (out, in)
    d, m, dmin, e       one for each block, (out, blocks)
    scales, mins        one for each part of a block, (out, parts)

They are the type's own numbers: what is compared in a file is every number that it holds, and not
only what they multiply to. Weights are computed as ggml/src/ggml-quants.c `dequantize_row_*` does:
the products are exact in float32 (11 bits of a float16, at most 7 of a sub-scale, at most 6 of a
code), and taking off the minimum rounds once.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Fields:
    """The numbers of some rows.

    Attributes:
        codes: (out, in), uint8, or int8 where the type stores signed integers.
        numbers: the others by their name in ggml-common.h, (out, n) each: float16 as stored,
            and small integers as the int8 or uint8 that they stand for.
    """

    codes: NDArray[Any]
    numbers: dict[str, NDArray[Any]]

    def take(self, rows: NDArray[np.intp]) -> "Fields":
        """Those of the rows `rows`."""
        return Fields(self.codes[rows], {name: n[rows] for name, n in self.numbers.items()})

    def differences(self, other: "Fields") -> tuple[int, int]:
        """How many codes, and how many other numbers, differ from those of another matrix.

        As bit patterns: NaN differs from all numbers and -0 from 0.
        """
        others = sum(_unlike(n, other.numbers[name]) for name, n in self.numbers.items())
        return _unlike(self.codes, other.codes), others


def _unlike(one: NDArray[Any], other: NDArray[Any]) -> int:
    bits = np.dtype(f"u{one.dtype.itemsize}")
    return int(np.count_nonzero(np.ascontiguousarray(one).view(bits) != other.view(bits)))


def compose(top: NDArray[Any], sub: NDArray[Any]) -> Floats:
    """Products float32 (out, parts) of numbers (out, blocks) and their parts' (out, parts)."""
    rows, blocks = top.shape
    with np.errstate(invalid="ignore"):
        products = top.astype(np.float32)[:, :, None] * sub.reshape(rows, blocks, -1)
    return products.reshape(rows, -1)


@dataclass(frozen=True, eq=False)
class Factors:
    """What multiplies to the weights of some rows: `scale * levels - minimum`.

    Attributes:
        levels: integers (out, in).
        scale: (out, n), float16 or float32; one for in / n weights.
        minimum: the same, or None.
    """

    levels: NDArray[Any]
    scale: NDArray[Any]
    minimum: NDArray[Any] | None = None

    def times(self, factor: np.float32) -> "Factors":
        """All weights multiplied by a power of two."""
        minimum = None if self.minimum is None else self.minimum.astype(np.float32) * factor
        return Factors(self.levels, self.scale.astype(np.float32) * factor, minimum)

    def weights(self) -> Floats:
        """float32 (out, in)."""
        rows, columns = self.levels.shape
        grouped = self.levels.reshape(rows, self.scale.shape[1], -1).astype(np.float32)
        with np.errstate(invalid="ignore", over="ignore"):  # bytes that nobody vouches for
            grouped *= self.scale.astype(np.float32)[:, :, None]
            if self.minimum is not None:
                grouped -= self.minimum.astype(np.float32)[:, :, None]
        return grouped.reshape(rows, columns)

    def are_those_of(self, levels: NDArray[Any], scale: Floats, minimum: Floats | None) -> bool:
        """Whether every number is the same, each perhaps for fewer weights than there.

        Then the weights are equal; if not, they may be so all the same.
        """
        return (
            np.array_equal(self.levels, levels)
            and _repeats(self.scale, scale)
            and _repeats(self.minimum, minimum)
        )


def _repeats(own: NDArray[Any] | None, other: Floats | None) -> bool:
    """Whether `own` (out, n) is `other` (out, m), each number n / m times."""
    if own is None or other is None:
        return own is other
    if own.shape[1] % other.shape[1]:
        return False
    return bool((own.reshape(*other.shape, -1) == other[:, :, None]).all())
