"""What llama.cpp's own quantizer writes lies on our grids, and comes back byte for byte."""

import numpy as np
import pytest

from exporters.gguf.blocks import integer_blocks
from lrqat.importing.sources.gguf_fields import to_grid
from lrqat.runtimes.llama_cpp.quantize_rows import quantize_rows

RNG = np.random.default_rng(0)
HEAVY = RNG.standard_t(4, (16, 1024)).astype(np.float32)  # outliers, as weights have them
TERNARY = RNG.integers(-1, 2, (16, 1024)).astype(np.float32)
OURS_ALONE = {"q1_0": "llama.cpp rounds it from signs", "nvfp4": "its tensor scale is not written"}
NAMES = [name for name in integer_blocks() if name not in OURS_ALONE]


@pytest.mark.parametrize("weight", [HEAVY, TERNARY], ids=["heavy tails", "ternary"])
@pytest.mark.parametrize("name", NAMES)
def test_rows_of_llama_cpp_come_back(name, weight):
    block, octets = integer_blocks()[name], quantize_rows(name, weight, weight[0] ** 2 + 1)
    tensor = to_grid("weight", block, block.unpack(octets))
    assert tensor is not None
    again = block.pack(block.encode(tensor.q, tensor.scales, tensor.grid))
    assert np.array_equal(again, octets)
