"""Q4_0: 32 weights in 18 bytes.

    byte 0..1    fp16 d
    byte 2+j     code[j] | code[j+16] << 4        j = 0..15

    weight = d * (code - 8),   code = q + 8,   q in -8..7

Exact for every grid of at most 4 bits with fp16 scales whose groups are multiples of 32 or whole
rows: so for integers of 2 and 3 bits, with a zero-point too, and for ternary ones. `d` may be
negative. Source: ggml/src/ggml-common.h `block_q4_0`, ggml/src/ggml-quants.c
`dequantize_row_q4_0`.
"""

import numpy as np
from gguf import LlamaFileType
from numpy.typing import NDArray

from exporters.gguf.layout.encoding import encode_scaled
from exporters.gguf.layout.exactness import refuses_scaled
from exporters.gguf.layout.fields import Factors, Fields
from exporters.gguf.layout.ggml_types import ggml_type
from exporters.gguf.layout.rows import halves, in_blocks, join, split, stack, unstack
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.grids.grid import Grid

NAME = "q4_0"
TYPE = ggml_type(NAME)
FILE_TYPE = LlamaFileType.MOSTLY_Q4_0
ACTIVATIONS = "q8_0"
_LOW, _HIGH = -8, 7


def refuses(grid: Grid, in_features: int) -> str | None:
    """Why rows of `in_features` weights on `grid` are not exact in Q4_0, or None."""
    return refuses_scaled(TYPE, _LOW, _HIGH, grid, in_features)


def encode(q: NDArray[np.int8], scales: StoredScales, grid: Grid) -> Fields:
    """The numbers Q4_0 stores. Raises ExportRefusedError if one is not exact."""
    return encode_scaled(TYPE, _LOW, _HIGH, q, scales)


def pack(fields: Fields) -> NDArray[np.uint8]:
    """Rows of bytes (out, in / 32 * 18)."""
    return join(TYPE, fields.numbers["d"], stack(in_blocks(fields.codes, TYPE, 2, 16), 4))


def unpack(data: NDArray[np.uint8]) -> Fields:
    """Undo `pack`."""
    d, octets = split(TYPE, data, 2, 16)
    return Fields(unstack(octets, 4).reshape(len(data), -1), {"d": halves(d)})


def factors(fields: Fields) -> Factors:
    """What multiplies to the weights."""
    return Factors(fields.codes.view(np.int8) + np.int8(_LOW), fields.numbers["d"])
