"""llama.cpp's own rounding of a matrix: the function that llama-quantize calls for every tensor.

It derives scales from floating weights, which our exports never do. It is here to compare with.
Source: ggml.h, `ggml_quantize_chunk`.
"""

import ctypes

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from lrqat.errors import DataError
from lrqat.runtimes.llama_cpp import ffi

_FLOATS = ctypes.POINTER(ctypes.c_float)


def quantize_rows(
    kind: GGMLQuantizationType,
    weight: NDArray[np.float32],
    importance: NDArray[np.float32] | None = None,
) -> NDArray[np.uint8]:
    """The bytes that llama-quantize writes of `weight`.

    Args:
        kind: a quantized type.
        weight: float32 (rows, columns).
        importance: float32 (columns,) of the input channels, as llama-imatrix measures them.

    Returns:
        uint8 (rows, bytes a row).

    Raises:
        DataError: rows that are not whole blocks of the type.
        RuntimeUnavailableError: llama.cpp is not installed.
    """
    per_block, nbytes = GGML_QUANT_SIZES[kind]
    rows, columns = weight.shape
    if columns % per_block:
        raise DataError(f"rows of {columns} weights are not whole blocks of {kind.name}")
    source = np.ascontiguousarray(weight, np.float32)
    channels = None if importance is None else np.ascontiguousarray(importance, np.float32)
    made = np.empty((rows, columns // per_block * nbytes), np.uint8)
    written = ffi.load_library().ggml_quantize_chunk(
        int(kind),
        source.ctypes.data_as(_FLOATS),
        made.ctypes.data,
        0,
        rows,
        columns,
        None if channels is None else channels.ctypes.data_as(_FLOATS),
    )
    assert written == made.nbytes, "ggml wrote another number of bytes than the type has"
    return made
