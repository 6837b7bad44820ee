"""Every ggml block type: the packing against itself, against gguf-py and against llama.cpp's C."""

import ml_dtypes  # noqa: F401
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.gguf.blocks import (
    float_blocks,
    integer_blocks,
    row_bytes,
)
from exporters.gguf.rows import block_scales, refuses_blocks
from lrqat.errors import ExportRefusedError, RuntimeUnavailableError
from lrqat.grid import GRIDS, FloatScale, Grid

INTEGER = sorted(integer_blocks().items())
FLOAT = sorted(float_blocks().items())
# Smallest subnormal, largest subnormal, smallest normal, one, largest: both signs.
EXTREMES = np.array([2**-24, 1023 * 2**-24, 2**-14, 1.0, 65504.0], np.float32)


def c_dequantize(name, data, count):
    llama_cpp = pytest.importorskip("runtime_tests.llama_cpp")
    try:
        return llama_cpp.dequantize_row(name, data, count)
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))


def held_range(block, in_features=256):
    """The widest range of integers that `block` accepts for rows of `in_features`."""
    for low, high in ((-128, 127), (-127, 127), (-32, 31), (-16, 15), (-8, 7), (-4, 3), (-2, 1)):
        grid = Grid("probe", 8, low, high, None, "", signed_scale=True)
        if block.refuses(grid, in_features) is None:
            return low, high
    raise AssertionError("the block holds no known range")


@st.composite
def rows_of(draw, low, high):
    """Integers and scales of a few rows, groups of 256 or whole rows."""
    rows, columns = draw(st.integers(1, 4)), 256 * draw(st.integers(1, 2))
    groups = draw(st.sampled_from([1, columns // 256]))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    q = rng.integers(low, high + 1, (rows, columns), np.int8)
    bits = rng.integers(0, 0x7C00, (rows, groups), np.uint16)  # every finite fp16 magnitude
    bits[bits == 0] = 1
    bits |= rng.integers(0, 2, bits.shape, np.uint16) << np.uint16(15)
    return q, bits.view(np.float16).astype(np.float32)


@pytest.mark.parametrize(("name", "block"), INTEGER)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_unpack_undoes_pack(name, block, data):
    low, high = held_range(block)
    q, scale = data.draw(rows_of(low, high))
    packed = block.pack(q, scale)
    assert packed.dtype == np.uint8
    assert packed.shape == (len(q), row_bytes(block, q.shape[1]))
    q_back, d = block.unpack(packed)
    np.testing.assert_array_equal(q_back, q)
    blocks = q.shape[1] // GGML_QUANT_SIZES[block.TYPE][0]
    expected = block_scales(scale, blocks)
    np.testing.assert_array_equal(d.astype(np.float16).view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize(("name", "block"), INTEGER)
def test_every_integer_with_extreme_scales(name, block):
    low, high = held_range(block)
    q = np.resize(np.arange(low, high + 1, dtype=np.int8), (10, 512))
    scale = np.concatenate([EXTREMES, -EXTREMES])[:, None]
    packed = block.pack(q, scale)
    exact = q.astype(np.float32) * scale
    np.testing.assert_array_equal(block.unpack(packed)[0], q)
    by_gguf = dequantize(packed, block.TYPE)
    np.testing.assert_array_equal(by_gguf, exact)
    by_c = c_dequantize(name, packed.tobytes(), q.size).reshape(q.shape)
    # As bits where not zero: the sign of a zero is the one thing that may differ.
    np.testing.assert_array_equal(by_c, exact)
    differ = by_c.view(np.uint32) != by_gguf.view(np.uint32)
    assert not (differ & (exact != 0)).any()


@pytest.mark.parametrize(("name", "block"), INTEGER)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_equal_to_both_dequantisers(name, block, data):
    low, high = held_range(block)
    q, scale = data.draw(rows_of(low, high))
    packed = block.pack(q, scale)
    columns = q.shape[1] // scale.shape[1]
    exact = (q.reshape(len(q), -1, columns) * scale[:, :, None]).reshape(q.shape)
    np.testing.assert_array_equal(dequantize(packed, block.TYPE), exact)
    by_c = c_dequantize(name, packed.tobytes(), q.size)
    np.testing.assert_array_equal(by_c, exact.ravel())


@pytest.mark.parametrize(("name", "block"), INTEGER + FLOAT)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_bytes_never_crash(name, block, data):
    weights, size = GGML_QUANT_SIZES[block.TYPE]
    blocks = data.draw(st.integers(1, 6))
    octets = data.draw(st.binary(min_size=size * blocks, max_size=size * blocks))
    rows = np.frombuffer(octets, np.uint8).reshape(1, -1)
    found = block.unpack(rows)
    values = found[0] if isinstance(found, tuple) else found
    assert values.shape == (1, weights * blocks)


@pytest.mark.parametrize(("name", "block"), INTEGER)
def test_random_bytes_mean_what_they_mean_in_c(name, block):
    rng = np.random.default_rng(7)
    weights, size = GGML_QUANT_SIZES[block.TYPE]
    octets = rng.integers(0, 256, (64, size), np.uint8)
    q, d = block.unpack(octets)
    finite = np.isfinite(d[:, 0])
    mine = (q * d.repeat(weights, axis=1))[finite]
    by_c = c_dequantize(name, octets.tobytes(), octets.shape[0] * weights).reshape(-1, weights)
    np.testing.assert_array_equal(mine, by_c[finite])


@pytest.mark.parametrize(("name", "block"), FLOAT)
def test_floats_survive_where_they_can(name, block):
    rng = np.random.default_rng(3)
    values = rng.standard_normal((5, 64)).astype(np.float32)
    kept = block.unpack(block.pack(values))
    np.testing.assert_array_equal(block.unpack(block.pack(kept)), kept)
    np.testing.assert_array_equal(dequantize(block.pack(kept), block.TYPE), kept)
    assert np.abs(kept - values).max() < 0.02


def test_a_scale_that_fp16_does_not_hold_is_refused():
    q = np.zeros((1, 32), np.int8)
    for scale in (0.1, 1e6, 2**-26):
        with pytest.raises(ExportRefusedError, match="float16"):
            integer_blocks()["q4_0"].pack(q, np.array([[scale]], np.float32))


@pytest.mark.parametrize(
    ("grid", "columns", "fits"),
    [
        ("q4_0", 256, {"q4_0", "q8_0"}),
        ("q8_0", 256, {"q8_0"}),
        ("int4-g128", 256, {"q4_0", "q8_0"}),
        ("int4-channel", 256, {"q4_0", "q8_0"}),
        ("int4-channel", 172, set()),
    ],
)
def test_which_types_hold_which_grid(grid, columns, fits):
    held = {n for n, block in INTEGER if block.refuses(GRIDS[grid], columns) is None}
    assert held == fits


def test_refusals_say_what_does_not_fit():
    assert "172" in (integer_blocks()["q4_0"].refuses(GRIDS["int4-channel"], 172) or "")
    narrow = Grid("g16", 4, -8, 7, 16, "", signed_scale=True)
    wide = Grid("f32", 4, -8, 7, 32, "", FloatScale("float32"))
    assert "only one" in (refuses_blocks("Q4_0", 32, -8, 7, narrow, 64) or "")
    assert "float32" in (refuses_blocks("Q4_0", 32, -8, 7, wide, 64) or "")


def test_the_smallest_type_comes_first_and_rows_are_whole_blocks():
    assert next(iter(integer_blocks())) == "q4_0"
    with pytest.raises(ValueError, match="whole blocks"):
        row_bytes(integer_blocks()["q4_0"], 33)
