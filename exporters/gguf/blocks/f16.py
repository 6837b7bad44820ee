"""F16: IEEE half precision, 2 bytes a weight, little endian.

llama.cpp multiplies it with activations rounded to half precision (ggml-cpu.c `type_traits_cpu`).
"""

import numpy as np
from gguf import LlamaFileType
from numpy.typing import NDArray

from exporters.gguf.ggml_types import ggml_type

NAME = "f16"
TYPE = ggml_type(NAME)
FILE_TYPE = LlamaFileType.MOSTLY_F16


def pack(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Bytes of float32 (rows, columns) as uint8 (rows, row bytes), rounded to nearest even."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, "<f2").view(np.uint8)


def unpack(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The float32 (rows, columns) that uint8 (rows, row bytes) stands for."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)
