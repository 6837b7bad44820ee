"""IQ4_NL: 32 weights in 18 bytes, 16 uneven levels.

    byte 0..1    fp16 d
    byte 2+j     code[j] | code[j+16] << 4        j = 0..15

    weight = d * level[code],   q = level[code]

Exact for the grid iq4_nl alone: the levels have no zero. `d` may be negative. Source:
ggml/src/ggml-common.h `block_iq4_nl`, `kvalues_iq4nl`; ggml/src/ggml-quants.c
`dequantize_row_iq4_nl`.
"""

import numpy as np
from gguf import LlamaFileType
from numpy.typing import NDArray

from exporters.gguf.layout import encoding
from exporters.gguf.layout.exactness import refuses_codebook
from exporters.gguf.layout.fields import Factors, Fields
from exporters.gguf.layout.ggml_types import ggml_type
from exporters.gguf.layout.rows import halves, in_blocks, join, split, stack, unstack
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.grids.grid import GRIDS, FloatScale, Grid

NAME = "iq4_nl"
TYPE = ggml_type(NAME)
FILE_TYPE = LlamaFileType.MOSTLY_IQ4_NL
ACTIVATIONS = "q8_0"
_LEVELS = np.array(GRIDS["iq4_nl"].levels, np.int8)  # in ggml's order, which rises


def refuses(grid: Grid, in_features: int) -> str | None:
    """Why rows of `in_features` weights on `grid` are not exact in IQ4_NL, or None."""
    return refuses_codebook(TYPE, _LEVELS.tolist(), FloatScale("float16"), grid, in_features)


def encode(q: NDArray[np.int8], scales: StoredScales, grid: Grid) -> Fields:
    """The numbers IQ4_NL stores. Raises ExportRefusedError if one is not exact."""
    codes = encoding.indices(q, _LEVELS, TYPE)
    return Fields(codes, {"d": encoding.block_scales(scales, TYPE.blocks(q.shape[1]))})


def pack(fields: Fields) -> NDArray[np.uint8]:
    """Rows of bytes (out, in / 32 * 18)."""
    return join(TYPE, fields.numbers["d"], stack(in_blocks(fields.codes, TYPE, 2, 16), 4))


def unpack(data: NDArray[np.uint8]) -> Fields:
    """Undo `pack`."""
    d, octets = split(TYPE, data, 2, 16)
    return Fields(unstack(octets, 4).reshape(len(data), -1), {"d": halves(d)})


def factors(fields: Fields) -> Factors:
    """What multiplies to the weights."""
    return Factors(_LEVELS.take(fields.codes), fields.numbers["d"])
