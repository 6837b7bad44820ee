"""Q2_0: 64 weights in 18 bytes.

    byte 0..1    fp16 d
    byte 2+j     code[4j] | code[4j+1] << 2 | code[4j+2] << 4 | code[4j+3] << 6        j = 0..15

    weight = d * (code - 1),   code in 0..3

The levels are -1..2, and a grid of 2 bits has -2..1: its signs are turned,

    d = -scale, code = 1 - q        q in -2..1
    d = scale,  code = q + 1        q in -1..1 (ternary)

Exact for these with fp16 scales whose groups are multiples of 64 or whole rows. gguf 0.19 does not
know the type. Source: ggml/src/ggml-common.h `block_q2_0`, ggml/src/ggml-quants.c
`dequantize_row_q2_0`; the file type is LLAMA_FTYPE_MOSTLY_Q2_0 of include/llama.h.
"""

import numpy as np
from numpy.typing import NDArray

from exporters.gguf.layout import encoding
from exporters.gguf.layout.exactness import refuses_scaled
from exporters.gguf.layout.fields import Factors, Fields
from exporters.gguf.layout.ggml_types import ggml_type
from exporters.gguf.layout.rows import adjacent, apart, halves, in_blocks, join, split
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.grids.grid import Grid

NAME = "q2_0"
TYPE = ggml_type(NAME)
FILE_TYPE = 41
ACTIVATIONS = "q8_0"
_LOW, _HIGH = -1, 2


def refuses(grid: Grid, in_features: int) -> str | None:
    """Why rows of `in_features` weights on `grid` are not exact in Q2_0, or None."""
    return refuses_scaled(TYPE, -_HIGH, -_LOW, grid, in_features)


def encode(q: NDArray[np.int8], scales: StoredScales, grid: Grid) -> Fields:
    """The numbers Q2_0 stores. Raises ExportRefusedError if one is not exact."""
    sign = np.int8(-1 if grid.q_min < _LOW else 1)
    codes = encoding.codes(sign * q, _LOW, _HIGH, TYPE)
    return Fields(codes, {"d": sign * encoding.block_scales(scales, TYPE.blocks(q.shape[1]))})


def pack(fields: Fields) -> NDArray[np.uint8]:
    """Rows of bytes (out, in / 64 * 18)."""
    return join(TYPE, fields.numbers["d"], adjacent(in_blocks(fields.codes, TYPE, 64), 2))


def unpack(data: NDArray[np.uint8]) -> Fields:
    """Undo `pack`."""
    d, octets = split(TYPE, data, 2, 16)
    return Fields(apart(octets, 2).reshape(len(data), -1), {"d": halves(d)})


def factors(fields: Fields) -> Factors:
    """What multiplies to the weights."""
    return Factors(fields.codes.view(np.int8) + np.int8(_LOW), fields.numbers["d"])
