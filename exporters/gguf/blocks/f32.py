"""F32: IEEE single precision, 4 bytes per weight, little endian.

llama.cpp computes with it as it is, so a file of F32 tensors is the control that separates a wrong
graph from the runtime's rounding.
"""

import numpy as np
from gguf import LlamaFileType
from numpy.typing import NDArray

from exporters.gguf.layout.ggml_types import ggml_type

NAME = "f32"
TYPE = ggml_type(NAME)
FILE_TYPE = LlamaFileType.ALL_F32


def exact(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where float32 values are exact: everywhere."""
    return np.ones(values.shape, np.bool_)


def pack(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Bytes of float32 (rows, columns) as uint8 (rows, row bytes), rounded to nearest even."""
    return np.ascontiguousarray(values, "<f4").view(np.uint8)


def unpack(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The float32 (rows, columns) that uint8 (rows, row bytes) stands for."""
    return np.ascontiguousarray(data).view("<f4").astype(np.float32)
