"""Q5_0: 32 weights in 22 bytes.

    byte 0..1    fp16 d
    byte 2..5    bit 4 of code[0..31], one bit each, the first lowest
    byte 6+j     code[j] & 15 | (code[j+16] & 15) << 4        j = 0..15

    weight = d * (code - 16),   code = q + 16,   q in -16..15

Exact for every grid of at most 5 bits (4 with a zero-point) with fp16 scales whose groups are
multiples of 32 or whole rows. `d` may be negative. Source: ggml/src/ggml-common.h `block_q5_0`,
ggml/src/ggml-quants.c `dequantize_row_q5_0`.
"""

import numpy as np
from gguf import LlamaFileType
from numpy.typing import NDArray

from exporters.gguf.layout.encoding import encode_scaled
from exporters.gguf.layout.exactness import refuses_scaled
from exporters.gguf.layout.fields import Factors, Fields
from exporters.gguf.layout.ggml_types import ggml_type
from exporters.gguf.layout.rows import (
    adjacent,
    apart,
    halves,
    in_blocks,
    join,
    split,
    stack,
    unstack,
)
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.grids.grid import Grid

NAME = "q5_0"
TYPE = ggml_type(NAME)
FILE_TYPE = LlamaFileType.MOSTLY_Q5_0
ACTIVATIONS = "q8_0"
_LOW, _HIGH = -16, 15


def refuses(grid: Grid, in_features: int) -> str | None:
    """Why rows of `in_features` weights on `grid` are not exact in Q5_0, or None."""
    return refuses_scaled(TYPE, _LOW, _HIGH, grid, in_features)


def encode(q: NDArray[np.int8], scales: StoredScales, grid: Grid) -> Fields:
    """The numbers Q5_0 stores. Raises ExportRefusedError if one is not exact."""
    return encode_scaled(TYPE, _LOW, _HIGH, q, scales)


def pack(fields: Fields) -> NDArray[np.uint8]:
    """Rows of bytes (out, in / 32 * 22)."""
    codes = in_blocks(fields.codes, TYPE, 2, 16)
    high = adjacent(in_blocks(fields.codes >> np.uint8(4), TYPE, 32), 1)
    return join(TYPE, fields.numbers["d"], high, stack(codes & np.uint8(15), 4))


def unpack(data: NDArray[np.uint8]) -> Fields:
    """Undo `pack`."""
    d, high, low = split(TYPE, data, 2, 4, 16)
    codes = apart(high, 1) << np.uint8(4) | unstack(low, 4).reshape(*low.shape[:2], 32)
    return Fields(codes.reshape(len(data), -1), {"d": halves(d)})


def factors(fields: Fields) -> Factors:
    """What multiplies to the weights."""
    return Factors(fields.codes.view(np.int8) + np.int8(_LOW), fields.numbers["d"])
