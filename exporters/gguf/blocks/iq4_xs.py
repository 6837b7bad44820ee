"""IQ4_XS: 256 weights in 136 bytes, the levels of IQ4_NL with a signed 6-bit scale for every 32.

    byte 0..1        fp16 d
    byte 2..3        u16: OR of ((s[i] >> 4) << 2i)        i = 0..7
    byte 4+j         s[2j] & 15 | (s[2j+1] & 15) << 4      j = 0..3
    byte 8+16i+j     code[32i + j] | code[32i + 16 + j] << 4      j = 0..15, i = 0..7

    weight = d * (s - 32) * level[code],   q = level[code],   s - 32 = sub-scale

Exact for the grid iq4_xs alone: the levels have no zero, and iq4_nl has a float16 for every 32.
Products are exact in float32: 11 bits of d, 5 of a sub-scale, 7 of a level. Source:
ggml/src/ggml-common.h `block_iq4_xs`, `kvalues_iq4nl`; ggml/src/ggml-quants.c
`dequantize_row_iq4_xs`.
"""

import numpy as np
from gguf import LlamaFileType
from numpy.typing import NDArray

from exporters.gguf.layout import encoding
from exporters.gguf.layout.exactness import refuses_two_level_codebook
from exporters.gguf.layout.fields import Factors, Fields, compose
from exporters.gguf.layout.ggml_types import ggml_type
from exporters.gguf.layout.rows import halves, in_blocks, join, split, stack, unstack
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.grids.grid import GRIDS, Grid, TwoLevelScale

NAME = "iq4_xs"
TYPE = ggml_type(NAME)
FILE_TYPE = LlamaFileType.MOSTLY_IQ4_XS
ACTIVATIONS = "q8_k"
_LEVELS = np.array(GRIDS[NAME].levels, np.int8)  # in ggml's order, which rises
_PART, _SCALES = 32, TwoLevelScale(-32, 31, 6)
_SHIFTS = np.arange(8, dtype=np.uint16) * np.uint16(2)


def refuses(grid: Grid, in_features: int) -> str | None:
    """Why rows of `in_features` weights on `grid` are not exact in IQ4_XS, or None."""
    levels = _LEVELS.tolist()
    return refuses_two_level_codebook(TYPE, _PART, levels, _SCALES, grid, in_features)


def encode(q: NDArray[np.int8], scales: StoredScales, grid: Grid) -> Fields:
    """The numbers IQ4_XS stores. Raises ExportRefusedError if one is not exact."""
    return encoding.encode_two_level_codebook(TYPE, _PART, _LEVELS, _SCALES, q, scales)


def pack(fields: Fields) -> NDArray[np.uint8]:
    """Rows of bytes (out, in / 256 * 136)."""
    d = fields.numbers["d"]
    s = (fields.numbers["scales"] + np.int8(32)).view(np.uint8).reshape(*d.shape, 8)
    high = np.bitwise_or.reduce((s >> np.uint8(4)).astype(np.uint16) << _SHIFTS, axis=2)
    low = s[:, :, ::2] & np.uint8(15) | s[:, :, 1::2] << np.uint8(4)
    return join(TYPE, d, high, low, stack(in_blocks(fields.codes, TYPE, 8, 2, 16), 4))


def unpack(data: NDArray[np.uint8]) -> Fields:
    """Undo `pack`."""
    d, high, low, octets = split(TYPE, data, 2, 2, 4, 128)
    rows, blocks = d.shape[:2]
    top = high.view("<u2") >> _SHIFTS & np.uint16(3)
    bottom = np.stack([low & np.uint8(15), low >> np.uint8(4)], axis=3).reshape(rows, blocks, 8)
    s = (top.astype(np.uint8) << np.uint8(4) | bottom).view(np.int8) - np.int8(32)
    codes = unstack(octets.reshape(rows, blocks, 8, 16), 4).reshape(rows, -1)
    return Fields(codes, {"d": halves(d), "scales": s.reshape(rows, -1)})


def factors(fields: Fields) -> Factors:
    """What multiplies to the weights."""
    scales = compose(fields.numbers["d"], fields.numbers["scales"])
    return Factors(_LEVELS.take(fields.codes), scales)
