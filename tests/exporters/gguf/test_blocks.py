"""Every ggml block type against itself, against gguf-py and against llama.cpp's C, on any bytes."""

import ml_dtypes  # noqa: F401
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.gguf.blocks import float_blocks, integer_blocks, row_bytes
from exporters.gguf.layout.fields import Fields
from exporters.gguf.layout.ggml_types import TYPES
from tests.support.ggml_decoders import (
    ALL,
    INTEGER,
    assert_equal_fields,
    assert_same_weights,
    c_dequantize,
    gguf_dequantize,
)

FLOAT = sorted(float_blocks().items())


def random_rows(kind, seed, rows=4, blocks=2):
    return np.random.default_rng(seed).integers(0, 256, (rows, blocks * kind.nbytes), np.uint8)


@ALL
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_pack_and_unpack_undo_each_other(name, block, seed):
    octets = random_rows(block.TYPE, seed)
    fields = block.unpack(octets)
    assert fields.codes.shape == (4, 2 * block.TYPE.weights)
    packed = block.pack(fields)
    assert packed.dtype == np.uint8
    assert packed.shape == octets.shape
    assert_equal_fields(block.unpack(packed), fields)
    if name != "tq1_0":  # where several bytes stand for the same five digits
        np.testing.assert_array_equal(packed, octets)


@ALL
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_bytes_mean_what_they_mean_in_c_and_in_gguf_py(name, block, seed):
    octets = random_rows(block.TYPE, seed)
    values = block.factors(block.unpack(octets)).weights()
    assert values.dtype == np.float32
    assert_same_weights(values, c_dequantize(name, octets))
    assert_same_weights(values, gguf_dequantize(name, octets))


@ALL
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_bytes_of_hypothesis_never_crash(name, block, data):
    size = block.TYPE.nbytes * data.draw(st.integers(1, 3))
    octets = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
    block.factors(block.unpack(octets.reshape(1, -1))).weights()


@ALL
def test_one_byte_changes_one_place(name, block):
    """No number of a block lies over another: every byte is seen, and only where it belongs."""
    size = block.TYPE.nbytes
    before = block.unpack(np.zeros((1, size), np.uint8))
    for changed in np.eye(size, dtype=np.uint8)[:, None] * np.uint8(255):
        codes, others = block.unpack(changed).differences(before)
        assert codes + others > 0
        assert codes <= 8
        assert others <= 4


@ALL
def test_the_codes_that_a_type_has_are_the_codes_that_c_reads(name, block):
    """All codes at one scale: as many different weights in C as there are codes."""
    two_zeros = {"mxfp4": 15, "nvfp4": 15}
    uneven = {"tq1_0": 3, "tq2_0": 4, "iq4_nl": 16, "iq4_xs": 16, **two_zeros}
    octets = random_rows(block.TYPE, 1, rows=1, blocks=64)
    fields = block.unpack(octets)
    ones = {n: np.ones_like(v) for n, v in fields.numbers.items()}
    found = c_dequantize(name, block.pack(Fields(fields.codes, ones)))
    assert len(np.unique(found)) == (uneven.get(name) or 2 ** int(name[1]))


@pytest.mark.parametrize(("name", "block"), FLOAT)
def test_floats_survive_where_they_can(name, block):
    rng = np.random.default_rng(3)
    values = rng.standard_normal((5, 64)).astype(np.float32)
    kept = block.unpack(block.pack(values))
    np.testing.assert_array_equal(block.unpack(block.pack(kept)), kept)
    np.testing.assert_array_equal(gguf_dequantize(name, block.pack(kept)), kept)
    assert np.abs(kept - values).max() < 0.02


@pytest.mark.parametrize(("name", "block"), FLOAT)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_random_floats_never_crash(name, block, data):
    octets = data.draw(st.binary(min_size=64, max_size=64))
    assert block.unpack(np.frombuffer(octets, np.uint8).reshape(1, -1)).shape[0] == 1


def test_sizes_are_those_of_ggml():
    library = pytest.importorskip("lrqat.runtimes.llama_cpp.ffi").load_library()
    for name, block in INTEGER + FLOAT:
        kind = block.TYPE
        assert TYPES[kind.number] is kind
        assert kind.name.lower() == name == block.NAME
        assert library.ggml_type_size(kind.number) == kind.nbytes
        assert library.ggml_blck_size(kind.number) == kind.weights


def test_rows_are_whole_blocks():
    assert row_bytes(integer_blocks()["q4_0"], 64) == 36
    with pytest.raises(ValueError, match="whole blocks"):
        row_bytes(integer_blocks()["q4_0"], 33)


@pytest.mark.parametrize(("name", "block"), FLOAT)
def test_exact_values_are_those_that_come_back(name, block):
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, np.uint32)
    halves = np.arange(2**16, dtype=np.uint16)  # all of float16, and of bfloat16
    values = np.concatenate([
        bits.view(np.float32),
        (bits & np.uint32(0xFFFFE000)).view(np.float32),
        (bits & np.uint32(0x9FFFE000) | np.uint32(0x20000000)).view(np.float32),
        halves.view(np.float16).astype(np.float32),
        (halves.astype(np.uint32) << np.uint32(16)).view(np.float32),
        np.float32(2.0) ** np.arange(-149, 128, dtype=np.float32),
        np.nextafter(np.float32([65504, 65520, 2**-14, 2**-24, 2**-25]), np.float32(1)),
    ])[None]  # fmt: skip
    values = values[:, np.isfinite(values[0])]
    kept = block.unpack(block.pack(values)).view(np.uint32)
    np.testing.assert_array_equal(block.exact(values), kept == values.view(np.uint32))
