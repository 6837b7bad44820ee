"""F16: IEEE half precision, 2 bytes per weight, little endian.

llama.cpp multiplies it with activations rounded to half precision (ggml-cpu.c `type_traits_cpu`).
"""

import numpy as np
from gguf import LlamaFileType
from numpy.typing import NDArray

from exporters.gguf.layout.ggml_types import ggml_type

NAME = "f16"
TYPE = ggml_type(NAME)
FILE_TYPE = LlamaFileType.MOSTLY_F16


_LARGEST, _STEPS = np.float32(65504), np.float32(2**24)  # a step of 2^-24 is the smallest


def exact(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where finite float32 values are half-precision numbers: those that `pack` does not change."""
    with np.errstate(over="ignore"):  # of a float32 so large that the last test refuses it
        steps = values * _STEPS
    has_11_bits = values.view(np.uint32) & np.uint32(0x1FFF) == 0
    return has_11_bits & (np.rint(steps) == steps) & (np.abs(values) <= _LARGEST)


def pack(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Bytes of float32 (rows, columns) as uint8 (rows, row bytes), rounded to nearest even."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, "<f2").view(np.uint8)


def unpack(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The float32 (rows, columns) that uint8 (rows, row bytes) stands for."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)
