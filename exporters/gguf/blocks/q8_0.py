"""Q8_0: 32 weights in 34 bytes.

    byte 0..1    fp16 d
    byte 2+j     int8 q[j]                        j = 0..31

    weight = d * q

We write -127..127, the range of llama.cpp's own quantiser, on which every backend's kernels are
tested; -128 decodes but some integer dot products overflow on it. Exact for every grid in that
range with fp16 scales whose groups are multiples of 32 or whole rows. Source:
ggml/src/ggml-common.h `block_q8_0`, ggml/src/ggml-quants.c `dequantize_row_q8_0`.
"""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from numpy.typing import NDArray

from exporters.gguf.rows import block_scales, join_blocks, refuses_blocks, split_blocks
from lrqat.grid import Grid

NAME = "q8_0"
TYPE = GGMLQuantizationType.Q8_0
FILE_TYPE = LlamaFileType.MOSTLY_Q8_0
_BLOCK, _BYTES = GGML_QUANT_SIZES[TYPE]


def refuses(grid: Grid, in_features: int) -> str | None:
    """Why rows of `in_features` weights on `grid` are not exact in Q8_0, or None."""
    return refuses_blocks("Q8_0", _BLOCK, -127, 127, grid, in_features)


def pack(q: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Pack q int8 (out, in) and scale float32 (out, groups) into uint8 (out, in / 32 * 34).

    Raises ExportRefusedError if a scale is not exact in fp16.
    """
    rows, columns = q.shape
    octets = np.ascontiguousarray(q).view(np.uint8).reshape(rows, columns // _BLOCK, _BLOCK)
    return join_blocks(block_scales(scale, columns // _BLOCK), octets)


def unpack(data: NDArray[np.uint8]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Unpack uint8 (out, row bytes) into q int8 (out, in) and d float32 (out, in / 32)."""
    d, octets = split_blocks(data, _BYTES)
    return octets.reshape(data.shape[0], -1).view(np.int8), d
