"""Q4_1: 32 weights in 20 bytes.

    byte 0..1    fp16 d
    byte 2..3    fp16 m
    byte 4+j     code[j] | code[j+16] << 4        j = 0..15

    weight = d * code + m,   code = q,   m = -minimum

Exact for the grid q4_1; and for symmetric grids of at most 4 bits that Q4_0 holds in less, with
code = q - q_min and m = scale * q_min, a power of two times the scale. Not for zero-points, whose
product with the scale has more bits than fp16. Source: ggml/src/ggml-common.h `block_q4_1`,
ggml/src/ggml-quants.c `dequantize_row_q4_1`.
"""

import numpy as np
from gguf import LlamaFileType
from numpy.typing import NDArray

from exporters.gguf.layout.encoding import encode_offset
from exporters.gguf.layout.exactness import refuses_minima, refuses_offset
from exporters.gguf.layout.fields import Factors, Fields
from exporters.gguf.layout.ggml_types import ggml_type
from exporters.gguf.layout.rows import halves, in_blocks, join, split, stack, unstack
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.grids.grid import Grid

NAME = "q4_1"
TYPE = ggml_type(NAME)
FILE_TYPE = LlamaFileType.MOSTLY_Q4_1
ACTIVATIONS = "q8_1"
_MOST = 15


def refuses(grid: Grid, in_features: int) -> str | None:
    """Why rows of `in_features` weights on `grid` are not exact in Q4_1, or None."""
    return refuses_offset(TYPE, _MOST, grid, in_features)


def refuses_scales(scales: StoredScales, grid: Grid) -> str | None:
    """Why weights on `grid` with these scales are not exact in Q4_1, or None."""
    return refuses_minima(TYPE, scales, grid)


def encode(q: NDArray[np.int8], scales: StoredScales, grid: Grid) -> Fields:
    """The numbers Q4_1 stores. Raises ExportRefusedError if one is not exact."""
    return encode_offset(TYPE, _MOST, q, scales, grid)


def pack(fields: Fields) -> NDArray[np.uint8]:
    """Rows of bytes (out, in / 32 * 20)."""
    octets = stack(in_blocks(fields.codes, TYPE, 2, 16), 4)
    return join(TYPE, fields.numbers["d"], fields.numbers["m"], octets)


def unpack(data: NDArray[np.uint8]) -> Fields:
    """Undo `pack`."""
    d, m, octets = split(TYPE, data, 2, 2, 16)
    return Fields(unstack(octets, 4).reshape(len(data), -1), {"d": halves(d), "m": halves(m)})


def factors(fields: Fields) -> Factors:
    """What multiplies to the weights."""
    return Factors(fields.codes, fields.numbers["d"], -fields.numbers["m"])
