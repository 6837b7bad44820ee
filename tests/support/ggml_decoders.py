"""The decoders of ggml's types that are not ours: llama.cpp's own C, and gguf-py."""

import ml_dtypes  # noqa: F401
import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize

from exporters.gguf.blocks import integer_blocks
from exporters.gguf.layout.ggml_types import ggml_type
from lrqat.errors import RuntimeUnavailableError

INTEGER = sorted(integer_blocks().items())
ALL = pytest.mark.parametrize(("name", "block"), INTEGER)
NOT_IN_GGUF_PY = {"q1_0", "q2_0"}


def c_dequantize(name, data):
    """What llama.cpp's C makes of rows of bytes, float32 (out, in)."""
    llama_cpp = pytest.importorskip("lrqat.runtimes.llama_cpp.runtime")
    kind = ggml_type(name)
    count = data.size // kind.nbytes * kind.weights
    try:
        return llama_cpp.dequantize_row(name, data.tobytes(), count).reshape(len(data), -1)
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))


def gguf_dequantize(name, data):
    """What gguf-py makes of rows of bytes; for the types that it does not know, what we do."""
    if name in NOT_IN_GGUF_PY:
        block = integer_blocks()[name]
        return block.factors(block.unpack(data)).weights()
    with np.errstate(all="ignore"):
        return dequantize(data, GGMLQuantizationType(ggml_type(name).number))


def assert_same_weights(ours, theirs):
    """Bit for bit, but for the sign of a zero and the payload of a NaN."""
    np.testing.assert_array_equal(ours, theirs)  # -0 equals 0, NaN equals NaN


def assert_equal_fields(found, expected):
    assert found.codes.dtype == expected.codes.dtype
    assert found.numbers.keys() == expected.numbers.keys()
    assert found.differences(expected) == (0, 0)
