"""Q2_K: 256 weights in 84 bytes, a 4-bit scale and a 4-bit minimum for every 16.

    byte j            s[j] | m[j] << 4                                j = 0..15
    byte 16+32h+j     OR of code[128h + 32i + j] << 2i                i = 0..3,  j = 0..31, h = 0..1
    byte 80..81       fp16 d
    byte 82..83       fp16 dmin

    weight = d * s * code - dmin * m,   code = q,   q in 0..3

Exact for the grid q2_k; for q2_k-sym, whose minima are 3/2 of its scales: code = (q + 3) / 2,
d = 2 super-scale, dmin = 3 super-scale, s = m = sub-scale; and for grids of 2 bits, symmetric or
with a zero-point, whose fp16 scales serve a multiple of 256 weights or a whole row: code = q + 2,
d = dmin = scale, s = 1 and m the code of zero. Source: ggml/src/ggml-common.h
`block_q2_K`, ggml/src/ggml-quants.c `dequantize_row_q2_K`.
"""

import numpy as np
from gguf import LlamaFileType
from numpy.typing import NDArray

from exporters.gguf.layout.encoding import encode_two_level_centred, encode_two_level_offset
from exporters.gguf.layout.exactness import (
    is_centred,
    refuses_two_level_centred,
    refuses_two_level_offset,
)
from exporters.gguf.layout.fields import Factors, Fields, compose
from exporters.gguf.layout.ggml_types import ggml_type
from exporters.gguf.layout.rows import halves, in_blocks, join, split, stack, unstack
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.grids.grid import Grid, TwoLevelScale

NAME = "q2_k"
TYPE = ggml_type(NAME)
FILE_TYPE = LlamaFileType.MOSTLY_Q2_K
ACTIVATIONS = "q8_k"
_MOST, _PART, _SUB = 3, 16, TwoLevelScale(0, 15, 4)


def refuses(grid: Grid, in_features: int) -> str | None:
    """Why rows of `in_features` weights on `grid` are not exact in Q2_K, or None."""
    if is_centred(grid, _MOST):
        return refuses_two_level_centred(TYPE, _PART, _MOST, _SUB, grid, in_features)
    return refuses_two_level_offset(TYPE, _PART, _MOST, _SUB, _SUB, grid, in_features)


def encode(q: NDArray[np.int8], scales: StoredScales, grid: Grid) -> Fields:
    """The numbers Q2_K stores. Raises ExportRefusedError if one is not exact."""
    if is_centred(grid, _MOST):
        return encode_two_level_centred(TYPE, _PART, _MOST, _SUB, q, scales)
    return encode_two_level_offset(TYPE, _PART, _MOST, _SUB, q, scales, grid)


def pack(fields: Fields) -> NDArray[np.uint8]:
    """Rows of bytes (out, in / 256 * 84)."""
    d, dmin = fields.numbers["d"], fields.numbers["dmin"]
    sub = np.stack([fields.numbers["scales"], fields.numbers["mins"]], axis=1).view(np.uint8)
    octets = stack(in_blocks(fields.codes, TYPE, 2, 4, 32), 2)
    return join(TYPE, stack(sub, 4).reshape(*d.shape, 16), octets, d, dmin)


def unpack(data: NDArray[np.uint8]) -> Fields:
    """Undo `pack`."""
    sub, octets, d, dmin = split(TYPE, data, 16, 64, 2, 2)
    rows, blocks = d.shape[:2]
    scales, mins = unstack(sub.reshape(rows, -1), 4).view(np.int8).swapaxes(0, 1)
    codes = unstack(octets.reshape(rows, blocks, 2, 32), 2).reshape(rows, -1)
    return Fields(codes, {"d": halves(d), "dmin": halves(dmin), "scales": scales, "mins": mins})


def factors(fields: Fields) -> Factors:
    """What multiplies to the weights."""
    numbers = fields.numbers
    scales, mins = numbers["scales"], numbers["mins"]
    return Factors(fields.codes, compose(numbers["d"], scales), compose(numbers["dmin"], mins))
