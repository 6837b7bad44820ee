"""Q8_0: 32 weights in 34 bytes.

    byte 0..1    fp16 d
    byte 2+j     int8 q[j]                        j = 0..31

    weight = d * q

llama.cpp's own quantiser stays within -127..127, but its kernels take -128 too: activations stay
within 127, so the sums of two products that they make in 16 bits reach 2 * 128 * 127 at most
(ggml-cpu/arch/x86/quants.c `mul_sum_i8_pairs_float`). Exact for every grid of at most 8 bits (7
with a zero-point) with fp16 scales whose groups are multiples of 32 or whole rows, uneven levels
too. Source: ggml/src/ggml-common.h `block_q8_0`, ggml/src/ggml-quants.c `dequantize_row_q8_0`.
"""

import numpy as np
from gguf import LlamaFileType
from numpy.typing import NDArray

from exporters.gguf.layout import encoding
from exporters.gguf.layout.exactness import refuses_scaled
from exporters.gguf.layout.fields import Factors, Fields
from exporters.gguf.layout.ggml_types import ggml_type
from exporters.gguf.layout.rows import halves, in_blocks, join, split
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.grids.grid import Grid

NAME = "q8_0"
TYPE = ggml_type(NAME)
FILE_TYPE = LlamaFileType.MOSTLY_Q8_0
ACTIVATIONS = "q8_0"
_LOW, _HIGH = -128, 127


def refuses(grid: Grid, in_features: int) -> str | None:
    """Why rows of `in_features` weights on `grid` are not exact in Q8_0, or None."""
    return refuses_scaled(TYPE, _LOW, _HIGH, grid, in_features)


def encode(q: NDArray[np.int8], scales: StoredScales, grid: Grid) -> Fields:
    """The numbers Q8_0 stores. Raises ExportRefusedError if one is not exact."""
    codes = encoding.integers(q, _LOW, _HIGH, TYPE, scales.zero_point)
    return Fields(codes, {"d": encoding.block_scales(scales, TYPE.blocks(q.shape[1]))})


def pack(fields: Fields) -> NDArray[np.uint8]:
    """Rows of bytes (out, in / 32 * 34)."""
    return join(TYPE, fields.numbers["d"], in_blocks(fields.codes, TYPE, 32))


def unpack(data: NDArray[np.uint8]) -> Fields:
    """Undo `pack`."""
    d, octets = split(TYPE, data, 2, 32)
    return Fields(octets.reshape(len(data), -1).view(np.int8), {"d": halves(d)})


def factors(fields: Fields) -> Factors:
    """What multiplies to the weights."""
    return Factors(fields.codes, fields.numbers["d"])
