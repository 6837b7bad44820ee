"""BF16: the upper half of a float32, 2 bytes per weight, little endian.

Exact for what was trained in bfloat16. llama.cpp multiplies it with activations rounded to bfloat16
(ggml-cpu.c `type_traits_cpu`), which costs more than half precision does, so it is written only
when it is asked for.
"""

import ml_dtypes
import numpy as np
from gguf import LlamaFileType
from numpy.typing import NDArray

from exporters.gguf.layout.ggml_types import ggml_type

NAME = "bf16"
TYPE = ggml_type(NAME)
FILE_TYPE = LlamaFileType.MOSTLY_BF16


def exact(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where finite float32 values are those of bfloat16, whose lower half is 0."""
    return values.view(np.uint32) & np.uint32(0xFFFF) == 0


def pack(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Bytes of float32 (rows, columns) as uint8 (rows, row bytes), rounded to nearest even."""
    return np.ascontiguousarray(values.astype(ml_dtypes.bfloat16)).view(np.uint8)


def unpack(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The float32 (rows, columns) that uint8 (rows, row bytes) stands for."""
    return np.ascontiguousarray(data).view(ml_dtypes.bfloat16).astype(np.float32)
