"""Q1_0: 128 weights in 18 bytes, their signs.

    byte 0..1    fp16 d
    byte 2+j     OR of code[8j + i] << i        i = 0..7, j = 0..15

    weight = d * (2 code - 1),   q = 2 code - 1,   q is -1 or 1

Exact for the grid q1_0 alone: no weight is zero. gguf 0.19 knows the type's size, and does not
dequantize it. Source: ggml/src/ggml-common.h `block_q1_0`, ggml/src/ggml-quants.c
`dequantize_row_q1_0`.
"""

import numpy as np
from gguf import LlamaFileType
from numpy.typing import NDArray

from exporters.gguf.layout import encoding
from exporters.gguf.layout.exactness import refuses_codebook
from exporters.gguf.layout.fields import Factors, Fields
from exporters.gguf.layout.ggml_types import ggml_type
from exporters.gguf.layout.rows import adjacent, apart, halves, in_blocks, join, split
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.grids.grid import GRIDS, FloatScale, Grid

NAME = "q1_0"
TYPE = ggml_type(NAME)
FILE_TYPE = LlamaFileType.MOSTLY_Q1_0
ACTIVATIONS = "q8_0"
_LEVELS = np.array(GRIDS[NAME].levels, np.int8)


def refuses(grid: Grid, in_features: int) -> str | None:
    """Why rows of `in_features` weights on `grid` are not exact in Q1_0, or None."""
    return refuses_codebook(TYPE, _LEVELS.tolist(), FloatScale("float16"), grid, in_features)


def encode(q: NDArray[np.int8], scales: StoredScales, grid: Grid) -> Fields:
    """The numbers Q1_0 stores. Raises ExportRefusedError if one is not exact."""
    codes = encoding.indices(q, _LEVELS, TYPE)
    return Fields(codes, {"d": encoding.block_scales(scales, TYPE.blocks(q.shape[1]))})


def pack(fields: Fields) -> NDArray[np.uint8]:
    """Rows of bytes (out, in / 128 * 18)."""
    return join(TYPE, fields.numbers["d"], adjacent(in_blocks(fields.codes, TYPE, 128), 1))


def unpack(data: NDArray[np.uint8]) -> Fields:
    """Undo `pack`."""
    d, octets = split(TYPE, data, 2, 16)
    return Fields(apart(octets, 1).reshape(len(data), -1), {"d": halves(d)})


def factors(fields: Fields) -> Factors:
    """What multiplies to the weights."""
    return Factors(_LEVELS.take(fields.codes), fields.numbers["d"])
