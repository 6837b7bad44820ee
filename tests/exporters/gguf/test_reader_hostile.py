"""GGUF files that nobody vouches for: an error or a mismatch, quickly, whatever they hold."""

import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporters import gguf
from exporters.gguf.file.header import read_header
from lrqat.checkpoint.reader import Checkpoint

SECONDS = 2.0


@pytest.fixture(scope="module")
def good(fused_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    gguf.write(gguf.plan(Checkpoint.open(fused_checkpoint)), path)
    return path.read_bytes()


def outcome(path, data):
    """The error that reading `data` raises, or None; fails if it takes long or much memory."""
    path.write_bytes(data)
    tracemalloc.start()
    start = time.monotonic()
    try:
        read_header(path)
    except gguf.GgufFileError as error:
        return error
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert time.monotonic() - start < SECONDS
        assert peak < 20 * len(data) + 2**20
    return None


def string(text):
    return struct.pack("<Q", len(text)) + text


def header(tensors=0, entries=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


def tensor(name=b"x", shape=(32,), kind=0, offset=0):
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + dimensions + struct.pack("<IQ", kind, offset)


HUGE = 2**63
CASES = {
    "empty": b"",
    "no magic": b"GGML" + bytes(100),
    "version": header(version=2) + bytes(100),
    "tensors": header(tensors=HUGE) + bytes(1000),
    "entries": header(entries=2**64 - 1) + bytes(1000),
    "many empty keys": header(entries=70) + bytes(1000),
    "key length": header(entries=1) + struct.pack("<Q", HUGE) + bytes(100),
    "key not text": header(entries=1) + string(b"\xff\xfe") + bytes(100),
    "value type": header(entries=1) + string(b"k") + struct.pack("<I", 99) + bytes(100),
    "array length": header(entries=1) + string(b"k") + struct.pack("<IIQ", 9, 4, HUGE) + bytes(99),
    "string array": header(entries=1) + string(b"k") + struct.pack("<IIQ", 9, 8, 2**32) + bytes(99),
    "nested array": header(entries=1) + string(b"k") + struct.pack("<IIQ", 9, 9, 5) + bytes(99),
    "alignment 0": header(entries=1)
    + string(b"general.alignment")
    + struct.pack("<II", 4, 0)
    + bytes(99),
    "alignment text": header(entries=1)
    + string(b"general.alignment")
    + struct.pack("<I", 8)
    + string(b"32")
    + bytes(99),
    "dimensions": header(1) + string(b"x") + struct.pack("<I", 2**31) + bytes(100),
    "no dimension": header(1) + string(b"x") + struct.pack("<I", 0) + bytes(100),
    "shape product wraps": header(1) + tensor(shape=(2**32, 2**32)) + bytes(256),
    "shape zero": header(1) + tensor(shape=(32, 0)) + bytes(256),
    "shape beyond the file": header(1) + tensor(shape=(4096,)) + bytes(256),
    "unknown type": header(1) + tensor(kind=77) + bytes(256),
    "broken rows": header(1) + tensor(shape=(33,), kind=2) + bytes(256),
    "offset": header(1) + tensor(offset=32) + bytes(512),
    "offset wraps": header(1) + tensor(offset=2**64 - 32) + bytes(512),
    "same name": header(2) + tensor() + tensor(offset=128) + bytes(512),
}


@pytest.mark.parametrize("name", CASES)
def test_malformed_headers(name, tmp_path):
    error = outcome(tmp_path / "x.gguf", CASES[name])
    assert "x.gguf" in str(error)


def test_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(gguf.GgufFileError):
            read_header(path)


def test_truncation_anywhere(good, tmp_path):
    path = tmp_path / "x.gguf"
    lengths = [*range(0, 400, 7), *np.linspace(400, len(good) - 1, 60).astype(int)]
    for length in lengths:
        # The last tensor's padding may be cut off; nothing else may.
        if len(good) - length > 32:
            assert outcome(path, good[:length]) is not None, length


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    at=st.one_of(st.integers(0, 2000), st.integers(0, 10**9)),
    octet=st.binary(min_size=1, max_size=8),
)
def test_altered_bytes(at, octet, good, fused_checkpoint, tmp_path):
    path = tmp_path / "x.gguf"
    at %= len(good)
    data = (good[:at] + octet + good[at + len(octet) :])[: len(good)]
    if outcome(path, data) is None:
        # A valid file still: the comparison must end, and see any change of a tensor.
        checkpoint = Checkpoint.open(fused_checkpoint, verify=False)
        found = gguf.verify(path, checkpoint)
        spans = [(t.start, t.start + t.nbytes) for t in read_header(path).tensors.values()]
        changed = [i for i in range(len(good)) if data[i] != good[i]] if data != good else []
        inside = any(start <= i < end for i in changed for start, end in spans)
        assert bool(sum(found.values())) >= inside


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=400))
def test_random_bytes_after_the_magic(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "random.gguf"
    assert outcome(path, b"GGUF" + data) is not None or data[:20].count(0) > 10
