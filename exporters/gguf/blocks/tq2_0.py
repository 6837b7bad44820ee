"""TQ2_0: 256 ternary weights in 66 bytes.

    byte 32h+j    OR of code[128h + 32i + j] << 2i        h = 0..1, j = 0..31, i = 0..3
    byte 64..65   fp16 d

    weight = d * (code - 1),   code = q + 1,   q in -1..1

Code 3 decodes as 2, but llama.cpp's kernels are written for 0..2 (ggml-cpu/arch/x86/quants.c), so
it is never written. Exact for ternary grids with fp16 scales whose groups are multiples of 256 or
whole rows. Source: ggml/src/ggml-common.h `block_tq2_0`, ggml/src/ggml-quants.c
`dequantize_row_tq2_0`.
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

NAME = "tq2_0"
TYPE = ggml_type(NAME)
FILE_TYPE = LlamaFileType.MOSTLY_TQ2_0
ACTIVATIONS = "q8_k"
_LOW, _HIGH = -1, 1


def refuses(grid: Grid, in_features: int) -> str | None:
    """Why rows of `in_features` weights on `grid` are not exact in TQ2_0, or None."""
    return refuses_scaled(TYPE, _LOW, _HIGH, grid, in_features)


def encode(q: NDArray[np.int8], scales: StoredScales, grid: Grid) -> Fields:
    """The numbers TQ2_0 stores. Raises ExportRefusedError if one is not exact."""
    return encode_scaled(TYPE, _LOW, _HIGH, q, scales)


def pack(fields: Fields) -> NDArray[np.uint8]:
    """Rows of bytes (out, in / 256 * 66)."""
    return join(TYPE, stack(in_blocks(fields.codes, TYPE, 2, 4, 32), 2), fields.numbers["d"])


def unpack(data: NDArray[np.uint8]) -> Fields:
    """Undo `pack`."""
    octets, d = split(TYPE, data, 64, 2)
    codes = unstack(octets.reshape(*octets.shape[:2], 2, 32), 2)
    return Fields(codes.reshape(len(data), -1), {"d": halves(d)})


def factors(fields: Fields) -> Factors:
    """What multiplies to the weights."""
    return Factors(fields.codes.view(np.int8) + np.int8(_LOW), fields.numbers["d"])
