"""llama.cpp's own rounding of a matrix, against gguf's transcription of it."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from lrqat.errors import DataError
from lrqat.runtimes.llama_cpp.quantize_rows import quantize_rows

WEIGHT = np.random.default_rng(0).standard_normal((6, 256), np.float32)


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q8_0])
def test_bytes_are_those_of_gguf(kind):
    assert np.array_equal(quantize_rows(kind.name, WEIGHT), gguf.quants.quantize(WEIGHT, kind))


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q3_K, Kind.IQ4_NL])
def test_important_channels_get_smaller_errors(kind):
    important = np.ones(256, np.float32)
    important[::8] = 100.0
    plain = gguf.quants.dequantize(quantize_rows(kind.name, WEIGHT), kind)
    weighted = gguf.quants.dequantize(quantize_rows(kind.name, WEIGHT, important), kind)
    loss = [float((important * (WEIGHT - made) ** 2).sum()) for made in (plain, weighted)]
    assert loss[1] < loss[0]


def test_rows_that_are_no_whole_blocks_are_refused():
    with pytest.raises(DataError, match="rows of 250 weights"):
        quantize_rows("q4_0", WEIGHT[:, :250])
