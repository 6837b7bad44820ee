"""Rounding a matrix that nobody trained on a grid to Q8_0 or Q6_K, because the user asked for it.

An embedding or a head that stayed floating may be stored in fewer bits, as llama-quantize does it.
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

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType, dequantize, quantize
from numpy.typing import NDArray

from exporters.gguf.blocks import FloatBlock, float_blocks
from lrqat.errors import ExportRefusedError

_CHUNK_WEIGHTS = 1 << 22  # at a time, so that the tries need little memory
_SUPER, _SUB, _LEVELS = 256, 16, 32
_TINY = np.float32(1e-15)  # GROUP_MAX_EPS: smaller than this is zero


@dataclass(eq=False)
class RoundedType:
    """A ggml type that floating values can be rounded to, with all that a `FloatBlock` has.

    Attributes:
        NAME: its name.
        TYPE: its ggml number.
        FILE_TYPE: what `general.file_type` would be.
        quantizer: float32 (rows, columns) to the bytes of the rows.
    """

    NAME: str
    TYPE: GGMLQuantizationType
    FILE_TYPE: LlamaFileType
    quantizer: Callable[[NDArray[np.float32]], NDArray[np.uint8]]

    def pack(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Bytes (rows, row bytes) of finite float32 (rows, columns), rounded.

        Raises:
            ExportRefusedError: the columns are not whole blocks.
        """
        block = GGML_QUANT_SIZES[self.TYPE][0]
        rows, columns = values.shape
        if columns % block:
            raise ExportRefusedError(
                f"rows of {columns} weights do not divide into {self.NAME.upper()}'s blocks of "
                f"{block}; take f16"
            )
        step = max(1, _CHUNK_WEIGHTS // columns)
        parts = [self.quantizer(values[start : start + step]) for start in range(0, rows, step)]
        return np.concatenate(parts)

    def unpack(self, data: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The float32 (rows, columns) that the bytes stand for, exactly."""
        return dequantize(data, self.TYPE)


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
    return _join(q.T.reshape(-1, _SUPER).view(np.uint8), codes, d).reshape(rows, -1)


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


def _join(
    codes: NDArray[np.uint8], scales: NDArray[np.int8], d: NDArray[np.float16]
) -> NDArray[np.uint8]:
    """Blocks (n, 210) of codes 0..63 (n, 256), scales (n, 16) and d (n, 1): `block_q6_K`.

    low[64h + 32k + l]    4 bits of code[128h + 32k + l], above them those of code[... + 64]
    high[32h + l]         2 bits of each of code[128h + 32k + l], k = 0..3
    """
    quarters = codes.reshape(-1, 2, 4, 32)
    low = (quarters[:, :, :2] & np.uint8(15)) | (quarters[:, :, 2:] << np.uint8(4))
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = np.bitwise_or.reduce((quarters >> np.uint8(4)) << shifts, axis=2)
    octets = np.ascontiguousarray(d, "<f2").view(np.uint8).reshape(-1, 2)
    parts = [low.reshape(-1, 128), high.reshape(-1, 64), scales.view(np.uint8), octets]
    return np.concatenate(parts, axis=1)


def _quantize_q8_0(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return quantize(values, GGMLQuantizationType.Q8_0)


ROUNDED = {
    kind.NAME: kind
    for kind in (
        RoundedType("q8_0", GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0, _quantize_q8_0),
        RoundedType("q6_k", GGMLQuantizationType.Q6_K, LlamaFileType.MOSTLY_Q6_K, quantize_q6_k),
    )
}


def value_blocks() -> dict[str, FloatBlock]:
    """By name, all types that floating values can be stored in, exactly or rounded."""
    return {**float_blocks(), **ROUNDED}


def count_rounded(block: FloatBlock, values: NDArray[np.float32]) -> int:
    """How many of `values` (rows, columns) a type of floating values does not hold exactly."""
    kept = block.unpack(block.pack(values)).view(np.uint32)
    return int((kept != np.ascontiguousarray(values).view(np.uint32)).sum())
