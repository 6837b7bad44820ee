"""llama.cpp's own rounding of a matrix: the function that llama-quantize calls for every tensor.

It derives scales from floating weights, which our exports never do. It is here to compare with.
Source: ggml.h, `ggml_quantize_chunk`.
"""

import ctypes

import numpy as np
from numpy.typing import NDArray

from exporters.gguf.layout.ggml_types import ggml_type
from lrqat.errors import DataError
from lrqat.runtimes.llama_cpp import ffi

_FLOATS = ctypes.POINTER(ctypes.c_float)


def quantize_rows(
    type_name: str,
    weight: NDArray[np.float32],
    importance: NDArray[np.float32] | None = None,
) -> NDArray[np.uint8]:
    """The bytes that llama-quantize writes of `weight`.

    Args:
        type_name: a quantized type, as "q4_0".
        weight: float32 (rows, columns).
        importance: float32 (columns,) of the input channels, as llama-imatrix measures them.

    Returns:
        uint8 (rows, bytes a row).

    Raises:
        DataError: rows that are not whole blocks of the type.
        RuntimeUnavailableError: llama.cpp is not installed.
    """
    kind, (rows, columns) = ggml_type(type_name), weight.shape
    if columns % kind.weights:
        raise DataError(f"rows of {columns} weights are not whole blocks of {kind}")
    source = np.ascontiguousarray(weight, np.float32)
    channels = None if importance is None else np.ascontiguousarray(importance, np.float32)
    made = np.empty((rows, kind.blocks(columns) * kind.nbytes), np.uint8)
    written = ffi.load_library().ggml_quantize_chunk(
        kind.number,
        source.ctypes.data_as(_FLOATS),
        made.ctypes.data,
        0,
        rows,
        columns,
        None if channels is None else channels.ctypes.data_as(_FLOATS),
    )
    assert written == made.nbytes, "ggml wrote another number of bytes than the type has"
    return made
