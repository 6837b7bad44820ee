"""Q4_K: 256 weights in 144 bytes, a 6-bit scale and a 6-bit minimum for every 32.

    byte 0..1         fp16 d
    byte 2..3         fp16 dmin
    byte 4..15        s[0..7] and m[0..7], see `exporters.gguf.layout.k_scales`
    byte 16+32h+j     code[64h + j] | code[64h + 32 + j] << 4         j = 0..31, h = 0..3

    weight = d * s * code - dmin * m,   code = q,   q in 0..15

Exact for the grid q4_k; and for grids of at most 4 bits, symmetric or with a zero-point, whose fp16
scales serve a multiple of 256 weights or a whole row: code = q - q_min, d = dmin = scale, s = 1 and
m the code of zero. Source: ggml/src/ggml-common.h `block_q4_K`, ggml/src/ggml-quants.c
`dequantize_row_q4_K`.
"""

import numpy as np
from gguf import LlamaFileType
from numpy.typing import NDArray

from exporters.gguf.layout.encoding import encode_two_level_offset
from exporters.gguf.layout.exactness import refuses_two_level_offset
from exporters.gguf.layout.fields import Factors, Fields, compose
from exporters.gguf.layout.ggml_types import ggml_type
from exporters.gguf.layout.k_scales import pack_scales, unpack_scales
from exporters.gguf.layout.rows import halves, in_blocks, join, split, stack, unstack
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.grids.grid import Grid, TwoLevelScale

NAME = "q4_k"
TYPE = ggml_type(NAME)
FILE_TYPE = LlamaFileType.MOSTLY_Q4_K_S
ACTIVATIONS = "q8_k"
_MOST, _PART, _SUB = 15, 32, TwoLevelScale(0, 63, 6)


def refuses(grid: Grid, in_features: int) -> str | None:
    """Why rows of `in_features` weights on `grid` are not exact in Q4_K, or None."""
    return refuses_two_level_offset(TYPE, _PART, _MOST, _SUB, _SUB, grid, in_features)


def encode(q: NDArray[np.int8], scales: StoredScales, grid: Grid) -> Fields:
    """The numbers Q4_K stores. Raises ExportRefusedError if one is not exact."""
    return encode_two_level_offset(TYPE, _PART, _MOST, _SUB, q, scales, grid)


def pack(fields: Fields) -> NDArray[np.uint8]:
    """Rows of bytes (out, in / 256 * 144)."""
    numbers = fields.numbers
    sub = pack_scales(numbers["scales"], numbers["mins"])
    octets = stack(in_blocks(fields.codes, TYPE, 4, 2, 32), 4)
    return join(TYPE, numbers["d"], numbers["dmin"], sub, octets)


def unpack(data: NDArray[np.uint8]) -> Fields:
    """Undo `pack`."""
    d, dmin, sub, octets = split(TYPE, data, 2, 2, 12, 128)
    rows, blocks = d.shape[:2]
    scales, mins = unpack_scales(sub)
    codes = unstack(octets.reshape(rows, blocks, 4, 32), 4).reshape(rows, -1)
    return Fields(codes, {"d": halves(d), "dmin": halves(dmin), "scales": scales, "mins": mins})


def factors(fields: Fields) -> Factors:
    """What multiplies to the weights."""
    numbers = fields.numbers
    scales, mins = numbers["scales"], numbers["mins"]
    return Factors(fields.codes, compose(numbers["d"], scales), compose(numbers["dmin"], mins))
