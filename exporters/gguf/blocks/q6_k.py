"""Q6_K: 256 weights in 210 bytes, a signed 8-bit scale for every 16.

    byte 64h+j        code[128h + j] & 15 | (code[128h + 64 + j] & 15) << 4    j = 0..63, h = 0..1
    byte 128+32h+j    OR of (code[128h + 32i + j] >> 4) << 2i       i = 0..3,  j = 0..31, h = 0..1
    byte 192+j        int8 sub-scale of weights 16j .. 16j+15                  j = 0..15
    byte 208..209     fp16 d

    weight = d * sub-scale * (code - 32),   code = q + 32,   q in -32..31

Exact for the grids q6_k and q3_k, and with sub-scale 1 for every grid of at most 6 bits (5 with a
zero-point) whose fp16 scales serve a multiple of 256 weights or a whole row. Source:
ggml/src/ggml-common.h `block_q6_K`, ggml/src/ggml-quants.c `dequantize_row_q6_K`.
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

NAME = "q6_k"
TYPE = ggml_type(NAME)
FILE_TYPE = LlamaFileType.MOSTLY_Q6_K
ACTIVATIONS = "q8_k"
_LOW, _HIGH = -32, 31
_PART, _SCALES = 16, TwoLevelScale(-128, 127, 8)


def refuses(grid: Grid, in_features: int) -> str | None:
    """Why rows of `in_features` weights on `grid` are not exact in Q6_K, or None."""
    return refuses_two_level(TYPE, _PART, _LOW, _HIGH, _SCALES, grid, in_features)


def encode(q: NDArray[np.int8], scales: StoredScales, grid: Grid) -> Fields:
    """The numbers Q6_K stores. Raises ExportRefusedError if one is not exact."""
    return encode_two_level(TYPE, _PART, _LOW, _HIGH, _SCALES, q, scales)


def pack(fields: Fields) -> NDArray[np.uint8]:
    """Rows of bytes (out, in / 256 * 210)."""
    low = stack(in_blocks(fields.codes & np.uint8(15), TYPE, 2, 2, 64), 4)
    high = stack(in_blocks(fields.codes >> np.uint8(4), TYPE, 2, 4, 32), 2)
    d = fields.numbers["d"]
    return join(TYPE, low, high, fields.numbers["scales"].reshape(*d.shape, 16), d)


def unpack(data: NDArray[np.uint8]) -> Fields:
    """Undo `pack`."""
    low, high, scales, d = split(TYPE, data, 128, 64, 16, 2)
    rows, blocks = d.shape[:2]
    low_codes = unstack(low.reshape(rows, blocks, 2, 64), 4).reshape(rows, -1)
    high_codes = unstack(high.reshape(rows, blocks, 2, 32), 2).reshape(rows, -1)
    codes = high_codes << np.uint8(4) | low_codes
    return Fields(codes, {"d": halves(d), "scales": scales.reshape(rows, -1).view(np.int8)})


def factors(fields: Fields) -> Factors:
    """What multiplies to the weights."""
    scales = compose(fields.numbers["d"], fields.numbers["scales"])
    return Factors(fields.codes.view(np.int8) + np.int8(_LOW), scales)
