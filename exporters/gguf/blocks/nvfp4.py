"""NVFP4: 64 weights in 36 bytes, 4-bit floats (E2M1) with an 8-bit float (UE4M3) for every 16.

    byte s         d[s]                                           s = 0..3
    byte 4+8s+j    code[16s + j] | code[16s + 8 + j] << 4         j = 0..7

    weight = t * UE4M3(d[s]) / 2 * level[code],   q = level[code]

The levels are E2M1's times two, so d counts half. t is one float32 for the whole tensor, in a
tensor of its own, NAME.scale: llama.cpp's graph multiplies the product with it
(`exporters.gguf.tensors.weight_scales`). The grid's t is a power of two, so it makes no difference
what is multiplied first. d = 127 is NaN in E4M3 and never written, nor is 0. Code 8, the negative
zero, is read but not written. Exact for the grid nvfp4 alone. Source: ggml/src/ggml-common.h
`block_nvfp4`, `kvalues_fp4`; ggml/src/ggml-impl.h `ggml_ue4m3_to_fp32`; ggml/src/ggml-quants.c
`dequantize_row_nvfp4`; src/llama-graph.cpp `build_lora_mm`.
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
from lrqat.grids.grid import GRIDS, Float8Scale, Grid

NAME = "nvfp4"
TYPE = ggml_type(NAME)
FILE_TYPE = LlamaFileType.MOSTLY_NVFP4
ACTIVATIONS = "q8_0"
_PART = 16
# In ggml's order: the positive levels from zero, then their negatives.
_POSITIVE = [level for level in GRIDS[NAME].levels or () if level >= 0]
_LEVELS = np.array([*_POSITIVE, *(-level for level in _POSITIVE)], np.int8)


def _scales() -> NDArray[np.float32]:
    """What each d is worth: the highest bit is not read, and 127 is 0, as in ggml."""
    exponent, fraction = np.divmod(np.arange(256) & 127, 8)
    normal = np.ldexp(1 + fraction / 8, exponent - 7)
    found = np.where(exponent == 0, np.ldexp(fraction, -9), normal) / 2
    found[127] = 0
    return found.astype(np.float32)


_WORTH = _scales()


def refuses(grid: Grid, in_features: int) -> str | None:
    """Why rows of `in_features` weights on `grid` are not exact in NVFP4, or None."""
    return refuses_codebook(TYPE, _LEVELS.tolist(), Float8Scale(), grid, in_features, _PART)


def encode(q: NDArray[np.int8], scales: StoredScales, grid: Grid) -> Fields:
    """The numbers NVFP4 stores. Raises ExportRefusedError if one is not exact."""
    d = encoding.repeated(encoding.float8(scales, TYPE), q.shape[1] // _PART)
    return Fields(encoding.indices(q, _LEVELS, TYPE), {"d": d})


def tensor_scale(scales: StoredScales) -> np.float32:
    """What NAME.scale holds. Raises ExportRefusedError if rows have several."""
    return np.float32(2) * encoding.tensor_scale(scales, TYPE)


def pack(fields: Fields) -> NDArray[np.uint8]:
    """Rows of bytes (out, in / 64 * 36)."""
    d = fields.numbers["d"].reshape(len(fields.codes), -1, 4)
    return join(TYPE, d, stack(in_blocks(fields.codes, TYPE, 4, 2, 8), 4))


def unpack(data: NDArray[np.uint8]) -> Fields:
    """Undo `pack`."""
    d, octets = split(TYPE, data, 4, 32)
    codes = unstack(octets.reshape(*octets.shape[:2], 4, 8), 4)
    return Fields(codes.reshape(len(data), -1), {"d": d.reshape(len(data), -1)})


def factors(fields: Fields) -> Factors:
    """What multiplies to the weights, but for the tensor's own scale."""
    return Factors(_LEVELS.take(fields.codes), _WORTH.take(fields.numbers["d"]))
