"""Q3_K: 256 weights in 110 bytes, a signed 6-bit scale for every 16.

    byte j            OR of (code[32i + j] >> 2) << i                 i = 0..7,  j = 0..31
    byte 32+32h+j     OR of (code[128h + 32i + j] & 3) << 2i          i = 0..3,  j = 0..31, h = 0..1
    byte 96+j         s[j] & 15 | (s[j+8] & 15) << 4                  j = 0..7
    byte 104+j        OR of (s[4i + j] >> 4) << 2i                    i = 0..3,  j = 0..3
    byte 108..109     fp16 d

    weight = d * (s - 32) * (code - 4),   code = q + 4,   q in -4..3,   s - 32 = sub-scale

Exact for the grid q3_k, and with sub-scale 1 for every grid of at most 3 bits (2 with a zero-point)
whose fp16 scales serve a multiple of 256 weights or a whole row. Source: ggml/src/ggml-common.h
`block_q3_K`, ggml/src/ggml-quants.c `dequantize_row_q3_K`.
"""

import numpy as np
from gguf import LlamaFileType
from numpy.typing import NDArray

from exporters.gguf.layout.encoding import encode_two_level
from exporters.gguf.layout.exactness import refuses_two_level
from exporters.gguf.layout.fields import Factors, Fields, compose
from exporters.gguf.layout.ggml_types import ggml_type
from exporters.gguf.layout.rows import halves, in_blocks, join, split, stack, unstack
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.grids.grid import Grid, TwoLevelScale

NAME = "q3_k"
TYPE = ggml_type(NAME)
FILE_TYPE = LlamaFileType.MOSTLY_Q3_K_S
ACTIVATIONS = "q8_k"
_LOW, _HIGH = -4, 3
_PART, _SCALES = 16, TwoLevelScale(-32, 31, 6)


def refuses(grid: Grid, in_features: int) -> str | None:
    """Why rows of `in_features` weights on `grid` are not exact in Q3_K, or None."""
    return refuses_two_level(TYPE, _PART, _LOW, _HIGH, _SCALES, grid, in_features)


def encode(q: NDArray[np.int8], scales: StoredScales, grid: Grid) -> Fields:
    """The numbers Q3_K stores. Raises ExportRefusedError if one is not exact."""
    return encode_two_level(TYPE, _PART, _LOW, _HIGH, _SCALES, q, scales)


def pack(fields: Fields) -> NDArray[np.uint8]:
    """Rows of bytes (out, in / 256 * 110)."""
    high = stack(in_blocks(fields.codes >> np.uint8(2), TYPE, 8, 32), 1)
    low = stack(in_blocks(fields.codes & np.uint8(3), TYPE, 2, 4, 32), 2)
    d = fields.numbers["d"]
    s = (fields.numbers["scales"] + np.int8(32)).view(np.uint8).reshape(*d.shape, 16)
    s_low = stack((s & np.uint8(15)).reshape(*d.shape, 2, 8), 4)
    s_high = stack((s >> np.uint8(4)).reshape(*d.shape, 4, 4), 2)
    return join(TYPE, high, low, s_low, s_high, d)


def unpack(data: NDArray[np.uint8]) -> Fields:
    """Undo `pack`."""
    high, low, s_low, s_high, d = split(TYPE, data, 32, 64, 8, 4, 2)
    rows, blocks = d.shape[:2]
    low_codes = unstack(low.reshape(rows, blocks, 2, 32), 2).reshape(rows, -1)
    codes = unstack(high, 1).reshape(rows, -1) << np.uint8(2) | low_codes
    s = unstack(s_high, 2).reshape(rows, -1) << np.uint8(4) | unstack(s_low, 4).reshape(rows, -1)
    return Fields(codes, {"d": halves(d), "scales": s.view(np.int8) - np.int8(32)})


def factors(fields: Fields) -> Factors:
    """What multiplies to the weights."""
    scales = compose(fields.numbers["d"], fields.numbers["scales"])
    return Factors(fields.codes.view(np.int8) + np.int8(_LOW), scales)
