"""Rounding a matrix that nobody trained on a grid to Q8_0 or Q6_K, because the user asked for it.

An unquantized embedding or head may be stored in fewer bits, as llama-quantize does it.
That loses something, so it is never done by default, and nothing that was trained on a grid ever
comes here: its integers and scales are packed by `blocks` as they are.

Q8_0 is gguf-py's quantiser, which equals llama.cpp's bit for bit. gguf-py has none for Q6_K; this
one follows `quantize_row_q6_K_ref` of ggml/src/ggml-quants.c: for every 16 weights the scale, out
of 19 tries, with the least error weighted by x^2; those scales in 8 bits of one fp16 per 256; then
every weight to the nearest. Sums run element by element, so the same values give the same bytes on
every machine.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, quantize
from numpy.typing import NDArray

from exporters.gguf.blocks import IntegerBlock, ValueBlock, float_blocks, integer_blocks
from exporters.gguf.layout.fields import Fields
from lrqat.errors import ExportRefusedError

_CHUNK_WEIGHTS = 1 << 22  # at a time, so that the tries need little memory
_SUPER, _SUB, _LEVELS = 256, 16, 32
_Q6_K = integer_blocks()["q6_k"]
_TINY = np.float32(1e-15)  # GROUP_MAX_EPS: smaller than this is zero


@dataclass(eq=False)
class RoundedType:
    """A ggml type that floating values can be rounded to, with all that a `ValueBlock` has.

    Attributes:
        block: the type.
        quantizer: float32 (rows, columns) to the bytes of the rows.
    """

    block: IntegerBlock
    quantizer: Callable[[NDArray[np.float32]], NDArray[np.uint8]]

    def __post_init__(self) -> None:
        self.NAME, self.TYPE = self.block.NAME, self.block.TYPE
        self.FILE_TYPE = self.block.FILE_TYPE

    def check_rows(self, columns: int) -> None:
        """Raise ExportRefusedError if rows of `columns` weights are not whole blocks."""
        if columns % self.TYPE.weights:
            raise ExportRefusedError(
                f"rows of {columns} weights do not divide into {self.TYPE}'s blocks of "
                f"{self.TYPE.weights}; take f16"
            )

    def pack(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Bytes (rows, row bytes) of finite float32 (rows, columns), rounded.

        Raises:
            ExportRefusedError: the columns are not whole blocks.
        """
        rows, columns = values.shape
        self.check_rows(columns)
        step = max(1, _CHUNK_WEIGHTS // columns)
        parts = [self.quantizer(values[start : start + step]) for start in range(0, rows, step)]
        return np.concatenate(parts)

    def unpack(self, data: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The float32 (rows, columns) that the bytes stand for, exactly."""
        return self.block.factors(self.block.unpack(data)).weights()


def quantize_q6_k(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Bytes (rows, columns / 256 * 210) of float32 (rows, columns)."""
    rows = values.shape[0]
    x = np.ascontiguousarray(values.reshape(-1, _SUB).T)  # (16, groups): sums run over rows
    scales = _best_scales(x).reshape(-1, _SUPER // _SUB)
    largest = np.take_along_axis(scales, np.abs(scales).argmax(axis=1)[:, None], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(np.abs(largest) < _TINY, np.float32(0), np.float32(-128) / largest)
        d = np.where(inverse == 0, np.float32(0), 1 / inverse).astype(np.float16)
    codes = np.clip(np.rint(inverse * scales), -128, 127).astype(np.int8)
    step = (d.astype(np.float32) * codes).reshape(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.where(step == 0, np.float32(0), np.rint(x / step))
    q = np.clip(q, -_LEVELS, _LEVELS - 1).astype(np.int8) + np.int8(_LEVELS)
    numbers: dict[str, NDArray[Any]] = {"d": d.reshape(rows, -1), "scales": codes.reshape(rows, -1)}
    return _Q6_K.pack(Fields(q.T.reshape(rows, -1).view(np.uint8), numbers))


def _best_scales(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scale (groups,) of x (16, groups) with the least error weighted by x^2."""
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        scale, best = _fit(x, np.float32(-_LEVELS) / largest)
        for nudge in (n for n in range(-9, 10) if n):
            levels = -(np.float32(_LEVELS) + np.float32(0.1) * np.float32(nudge))
            other, gain = _fit(x, levels / largest)
            better = gain > best
            scale, best = np.where(better, other, scale), np.where(better, gain, best)
    return np.where(np.abs(largest) < _TINY, np.float32(0), scale).astype(np.float32)


def _fit(
    x: NDArray[np.float32], inverse: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The scale that fits the levels rint(inverse * x) best, and how much error it takes away."""
    levels = np.clip(np.rint(inverse * x), -_LEVELS, _LEVELS - 1)
    weighted = x * x * levels
    with_x, with_levels = (weighted * x).sum(axis=0), (weighted * levels).sum(axis=0)
    scale = np.where(with_levels > 0, with_x / with_levels, np.float32(0))
    return scale, scale * with_x


def _quantize_q8_0(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return quantize(values, GGMLQuantizationType.Q8_0)


ROUNDED = {
    each.NAME: each
    for each in (
        RoundedType(integer_blocks()["q8_0"], _quantize_q8_0),
        RoundedType(_Q6_K, quantize_q6_k),
    )
}


def value_blocks() -> dict[str, ValueBlock]:
    """By name, all types that floating values can be stored in, exactly or rounded."""
    return {**float_blocks(), **ROUNDED}
