"""TQ1_0: 256 ternary weights in 54 bytes, five to a byte.

    byte j        code[32i + j]           i = 0..4,  j = 0..31
    byte 32+j     code[160 + 16i + j]     i = 0..4,  j = 0..15
    byte 48+j     code[240 + 4i + j]      i = 0..3,  j = 0..3
    byte 52..53   fp16 d

    weight = d * (code - 1),   code = q + 1,   q in -1..1

The codes of a byte are the digits of a fraction in base 3, the first the most significant:

    t = 81 code_0 + 27 code_1 + 9 code_2 + 3 code_3 + code_4,   byte = ceil(256 t / 243)

so that multiplying the byte by 3 carries out one digit after the other. Exact for ternary grids
with fp16 scales whose groups are multiples of 256 or whole rows. Source: ggml/src/ggml-common.h
`block_tq1_0`, ggml/src/ggml-quants.c `quantize_row_tq1_0_ref`, `dequantize_row_tq1_0`.
"""

import numpy as np
from gguf import LlamaFileType
from numpy.typing import NDArray

from exporters.gguf.layout.encoding import encode_scaled
from exporters.gguf.layout.exactness import refuses_scaled
from exporters.gguf.layout.fields import Factors, Fields
from exporters.gguf.layout.ggml_types import ggml_type
from exporters.gguf.layout.rows import halves, in_blocks, join, split
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.grids.grid import Grid

NAME = "tq1_0"
TYPE = ggml_type(NAME)
FILE_TYPE = LlamaFileType.MOSTLY_TQ1_0
ACTIVATIONS = "q8_k"
_LOW, _HIGH = -1, 1
# Where a run of bytes begins in the codes of a block, its digits and its bytes.
_RUNS = ((0, 5, 32), (160, 5, 16), (240, 4, 4))
_POWERS = np.array([81, 27, 9, 3, 1], np.uint16)


def refuses(grid: Grid, in_features: int) -> str | None:
    """Why rows of `in_features` weights on `grid` are not exact in TQ1_0, or None."""
    return refuses_scaled(TYPE, _LOW, _HIGH, grid, in_features)


def encode(q: NDArray[np.int8], scales: StoredScales, grid: Grid) -> Fields:
    """The numbers TQ1_0 stores. Raises ExportRefusedError if one is not exact."""
    return encode_scaled(TYPE, _LOW, _HIGH, q, scales)


def pack(fields: Fields) -> NDArray[np.uint8]:
    """Rows of bytes (out, in / 256 * 54)."""
    codes = in_blocks(fields.codes, TYPE, TYPE.weights)
    octets = [
        _digits_to_bytes(codes[..., start : start + digits * size], digits)
        for start, digits, size in _RUNS
    ]
    return join(TYPE, *octets, fields.numbers["d"])


def unpack(data: NDArray[np.uint8]) -> Fields:
    """Undo `pack`."""
    *octets, d = split(TYPE, data, *(size for _, _, size in _RUNS), 2)
    codes = [
        _bytes_to_digits(part, digits) for part, (_, digits, _) in zip(octets, _RUNS, strict=True)
    ]
    return Fields(np.concatenate(codes, axis=2).reshape(len(data), -1), {"d": halves(d)})


def factors(fields: Fields) -> Factors:
    """What multiplies to the weights."""
    return Factors(fields.codes.view(np.int8) + np.int8(_LOW), fields.numbers["d"])


def _digits_to_bytes(codes: NDArray[np.uint8], digits: int) -> NDArray[np.uint8]:
    """Digits (out, blocks, digits * n), one run after the other, as bytes (out, blocks, n)."""
    runs = codes.reshape(*codes.shape[:2], digits, -1)
    t = np.einsum("abin,i->abn", runs, _POWERS[:digits])
    return ((t.astype(np.uint32) * 256 + 242) // 243).astype(np.uint8)


def _bytes_to_digits(octets: NDArray[np.uint8], digits: int) -> NDArray[np.uint8]:
    """Undo `_digits_to_bytes`."""
    powers = (3 ** np.arange(digits)).astype(np.uint8)[:, None]
    left = octets[:, :, None, :] * powers  # what was carried out is gone: modulo 256
    carried = left.astype(np.uint16) * np.uint16(3) >> np.uint16(8)
    return carried.astype(np.uint8).reshape(*octets.shape[:2], -1)
