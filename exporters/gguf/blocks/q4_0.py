"""Q4_0: 32 weights in 18 bytes.

    byte 0..1    fp16 d
    byte 2+j     code[j] | code[j+16] << 4        j = 0..15

    weight = d * (code - 8),   code = q + 8,   q in -8..7

Exact for every grid of at most 4 bits with fp16 scales whose groups are multiples of 32 or whole
rows. `d` may be negative. Source: ggml/src/ggml-common.h `block_q4_0`, ggml/src/ggml-quants.c
`dequantize_row_q4_0`.
"""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from numpy.typing import NDArray

from exporters.gguf.rows import block_scales, join_blocks, refuses_blocks, split_blocks
from lrqat.grid import Grid

NAME = "q4_0"
TYPE = GGMLQuantizationType.Q4_0
FILE_TYPE = LlamaFileType.MOSTLY_Q4_0
_BLOCK, _BYTES = GGML_QUANT_SIZES[TYPE]
_HALF = _BLOCK // 2


def refuses(grid: Grid, in_features: int) -> str | None:
    """Why rows of `in_features` weights on `grid` are not exact in Q4_0, or None."""
    return refuses_blocks("Q4_0", _BLOCK, -8, 7, grid, in_features)


def pack(q: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Pack q int8 (out, in) and scale float32 (out, groups) into uint8 (out, in / 32 * 18).

    Raises ExportRefusedError if a scale is not exact in fp16.
    """
    rows, columns = q.shape
    codes = (q + np.int8(8)).view(np.uint8).reshape(rows, columns // _BLOCK, _BLOCK)
    octets = codes[:, :, :_HALF] | codes[:, :, _HALF:] << np.uint8(4)
    return join_blocks(block_scales(scale, columns // _BLOCK), octets)


def unpack(data: NDArray[np.uint8]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Unpack uint8 (out, row bytes) into q int8 (out, in) and d float32 (out, in / 32)."""
    d, octets = split_blocks(data, _BYTES)
    codes = np.concatenate([octets & np.uint8(15), octets >> np.uint8(4)], axis=2)
    return codes.reshape(data.shape[0], -1).view(np.int8) - np.int8(8), d
