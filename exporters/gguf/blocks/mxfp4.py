"""MXFP4: 32 weights in 17 bytes, 4-bit floats (E2M1) with a power of two (E8M0).

    byte 0       e
    byte 1+j     code[j] | code[j+16] << 4        j = 0..15

    weight = 2^(e - 128) * level[code],   q = level[code]

The levels are E2M1's times two, so the power of two is halved. e = 255 is NaN in E8M0 and never
written. Code 8, the negative zero, is read but not written. Exact for the grid mxfp4 alone, whose
scales are powers of two. Source: ggml/src/ggml-common.h `block_mxfp4`, `kvalues_fp4`;
ggml/src/ggml-impl.h `ggml_e8m0_to_fp32_half`; ggml/src/ggml-quants.c `dequantize_row_mxfp4`.
"""

import numpy as np
from gguf import LlamaFileType
from numpy.typing import NDArray

from exporters.gguf.layout import encoding
from exporters.gguf.layout.exactness import refuses_codebook
from exporters.gguf.layout.fields import Factors, Fields
from exporters.gguf.layout.ggml_types import ggml_type
from exporters.gguf.layout.rows import in_blocks, join, split, stack, unstack
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.grids.grid import GRIDS, Grid, PowerOfTwoScale

NAME = "mxfp4"
TYPE = ggml_type(NAME)
FILE_TYPE = LlamaFileType.MOSTLY_MXFP4_MOE
ACTIVATIONS = "q8_0"
# In ggml's order: the positive levels from zero, then their negatives.
_POSITIVE = [level for level in GRIDS["mxfp4"].levels or () if level >= 0]
_LEVELS = np.array([*_POSITIVE, *(-level for level in _POSITIVE)], np.int8)


def refuses(grid: Grid, in_features: int) -> str | None:
    """Why rows of `in_features` weights on `grid` are not exact in MXFP4, or None."""
    return refuses_codebook(TYPE, _LEVELS.tolist(), PowerOfTwoScale(), grid, in_features)


def encode(q: NDArray[np.int8], scales: StoredScales, grid: Grid) -> Fields:
    """The numbers MXFP4 stores. Raises ExportRefusedError if one is not exact."""
    exponents = encoding.exponents(scales, TYPE, low=-128, high=126)
    e = (encoding.repeated(exponents, TYPE.blocks(q.shape[1])) + 128).astype(np.uint8)
    return Fields(encoding.indices(q, _LEVELS, TYPE), {"e": e})


def pack(fields: Fields) -> NDArray[np.uint8]:
    """Rows of bytes (out, in / 32 * 17)."""
    return join(TYPE, fields.numbers["e"], stack(in_blocks(fields.codes, TYPE, 2, 16), 4))


def unpack(data: NDArray[np.uint8]) -> Fields:
    """Undo `pack`."""
    e, octets = split(TYPE, data, 1, 16)
    return Fields(unstack(octets, 4).reshape(len(data), -1), {"e": e[:, :, 0]})


def factors(fields: Fields) -> Factors:
    """What multiplies to the weights."""
    power = np.ldexp(np.float32(1), fields.numbers["e"].astype(np.int32) - 128)
    return Factors(_LEVELS.take(fields.codes), power)
