"""Importance matrices damaged, cut or invented: an error that says where, and little memory."""

import struct
import tracemalloc

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrqat.init import imatrix_file
from lrqat.init.imatrix_format import ImatrixFileError, read_entries
from tests.support.imatrix import COLUMNS, ENTRIES, OWN, TAILS, Q, legacy, write_gguf


def tensor(name=b"a", dims=(4,), kind=0, offset=0):
    described = struct.pack("<Q", len(name)) + name + struct.pack("<I", len(dims))
    return described + struct.pack(f"<{len(dims)}QIQ", *dims, kind, offset)


TYPE = struct.pack("<Q", 12) + b"general.type" + struct.pack("<IQ", 8, 7) + b"imatrix"


def header(tensors=0, pairs=1, version=3, body=TYPE):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + body


def key(name, form, value):
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", form) + value


def aligned(value):
    return key(b"general.alignment", 4, struct.pack("<I", value))


HUGE = 2**63
MODEL = key(b"general.type", 8, struct.pack("<Q", 5) + b"model")
SUMS, COUNTS = b"a.in_sum2", b"a.counts"
PAIR = tensor(SUMS) + tensor(COUNTS, dims=(1,), offset=32)
# What the file is -> its bytes, and a word of why it must be refused.
HOSTILE = {
    "empty": (b"", "cannot be read"),
    "only the magic": (b"GGUF", "too short"),
    "version": (header(version=2) + bytes(100), "version 2"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(100), "version"),
    "tensors": (header(tensors=HUGE) + bytes(1000), f"{HUGE} tensors"),
    "pairs": (header(pairs=2**64 - 1) + bytes(1000), "metadata entries"),
    "key length": (header(body=struct.pack("<Q", HUGE)) + bytes(100), f"{HUGE} bytes"),
    "key not text": (header(body=key(b"\xff\xfe", 4, bytes(4))) + bytes(100), "UTF-8"),
    "value type": (header(body=key(b"k", 99, b"")) + bytes(100), "unknown type 99"),
    "array": (header(body=key(b"k", 9, struct.pack("<IQ", 4, HUGE))) + bytes(100), "bytes"),
    "strings": (header(body=key(b"k", 9, struct.pack("<IQ", 8, 2**40))) + bytes(99), "strings"),
    "nested": (header(body=key(b"k", 9, struct.pack("<IQ", 9, 5))) + bytes(100), "of type 9"),
    "no type": (header(2, pairs=0, body=b"") + PAIR + bytes(100), "general.type is None"),
    "a model": (header(2, body=MODEL) + PAIR + bytes(100), "general.type is 'model'"),
    "alignment 0": (header(2, 2, body=TYPE + aligned(0)) + PAIR + bytes(999), "alignment is 0"),
    "alignment 24": (header(2, 2, body=TYPE + aligned(24)) + PAIR + bytes(999), "alignment is 24"),
    "alignment huge": (header(2, 2, body=TYPE + aligned(2**31)) + PAIR, "alignment is"),
    "no tensors": (header(), "no entry"),
    "dimensions": (header(1) + struct.pack("<QI", 0, 2**31) + bytes(100), "dimensions"),
    "no dimension": (header(1) + tensor(dims=()) + bytes(100), "0 dimensions"),
    "shape wraps": (header(1) + tensor(dims=(2**32, 2**32)) + bytes(256), "too short"),
    "shape zero": (header(1) + tensor(dims=(0,)) + bytes(256), "0 values"),
    "beyond the file": (header(1) + tensor(dims=(4096,)) + bytes(256), "4096 numbers"),
    "not F32": (header(1) + tensor(kind=1) + bytes(256), "of type 1"),
    "offset": (header(1) + tensor(offset=32) + bytes(512), "where it must be"),
    "overlap": (header(2) + tensor(SUMS) + tensor(COUNTS) + bytes(512), "where it must be"),
    "same name": (header(3) + PAIR + tensor(COUNTS, offset=64) + bytes(512), "twice"),
    "sums alone": (header(1) + tensor(SUMS) + bytes(512), "not pairs"),
    "counts alone": (header(1) + tensor(COUNTS) + bytes(512), "not pairs"),
    "other tensors": (header(1) + tensor(b"a.in_sum") + bytes(512), "no entry"),
    "no entry": (struct.pack("<i", 0), "no entry"),
    "entries negative": (struct.pack("<i", -1) + bytes(100), "-1 where a count"),
    "entries": (struct.pack("<i", 2**31 - 1) + bytes(1000), "entries"),
    "name length": (struct.pack("<ii", 1, 2**31 - 1) + bytes(100), "too short"),
    "name negative": (struct.pack("<ii", 1, -1) + bytes(100), "-1 where a count"),
    "values": (struct.pack("<iisii", 1, 1, b"a", 1, 2**31 - 1) + bytes(100), "numbers"),
    "values negative": (struct.pack("<iisii", 1, 1, b"a", 1, -4) + bytes(100), "-4 where"),
    "calls negative": (struct.pack("<iisiif", 1, 1, b"a", -1, 1, 1.0), "-1 where"),
    "twice": (struct.pack("<i", 2) + legacy({OWN: ENTRIES[OWN]})[4:] * 2, "occurs twice"),
    "tail": (legacy(tail=TAILS["data set"] + b"x"), "follow its end"),
    "tail length": (legacy(tail=struct.pack("<ii", 3, 2**31 - 1) + b"wiki"), "too short"),
    "text": (b"This is no importance matrix at all.\n" * 10, "too short"),
}


def outcome(path, data):
    """The error that reading `data` raises, or None; fails if it takes much memory."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        imatrix_file.read(path, COLUMNS)
    except ImatrixFileError as error:
        return error
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 20 * len(data) + 2**20
    return None


@pytest.fixture(scope="module", autouse=True)
def _names_are_loaded():
    imatrix_file.llama_cpp_names(Q)  # so that no test measures the import


@pytest.mark.parametrize("case", HOSTILE)
def test_damaged_files(tmp_path, case):
    path = tmp_path / "file"
    data, words = HOSTILE[case]
    # pytest puts the name of the case into the path.
    assert words in str(outcome(path, data)).replace(str(path), "")
    with pytest.raises(ImatrixFileError, match=str(path)):
        read_entries(path)


def test_the_pair_that_the_damaged_files_hold_is_good(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(header(2) + PAIR + bytes(128))
    assert {name: entry.sums.size for name, entry in read_entries(path).items()} == {"a": 4}


def test_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ImatrixFileError, match="cannot be read"):
            imatrix_file.read(path, COLUMNS)


def test_truncation_anywhere(tmp_path):
    path = tmp_path / "x"
    for good in (write_gguf(tmp_path / "i.gguf").read_bytes(), legacy(tail=TAILS["data set"])):
        assert outcome(path, good) is None
        whole = {len(legacy()), len(legacy()) + 4}  # the legacy form without all of its tail
        for length in range(len(good)):
            # The last tensor's padding may be cut off; nothing else may.
            if length not in whole and (good[:4] != b"GGUF" or len(good) - length >= 32):
                assert outcome(path, good[:length]) is not None, length


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("imatrix") / "i.gguf").read_bytes(), legacy()


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    form=st.integers(0, 1),
    at=st.integers(0, 10**4),
    octets=st.binary(min_size=1, max_size=8),
)
def test_altered_bytes(form, at, octets, good, tmp_path):
    data = good[form]
    at %= len(data)
    path = tmp_path / "x"
    altered = (data[:at] + octets + data[at + len(octets) :])[: len(data)]
    if outcome(path, altered) is None:
        # A valid file still: nothing that could harm may come out of it.
        for name, values in imatrix_file.read(path, COLUMNS).items():
            assert values.shape == (COLUMNS[name],)
            assert torch.isfinite(values).all()
            assert (values >= 0).all()


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300), magic=st.sampled_from([b"", b"GGUF\3\0\0\0", header(1)]))
def test_random_bytes(data, magic, tmp_path_factory):
    assert outcome(tmp_path_factory.getbasetemp() / "random", magic + data) is not None
