import builtins
import struct
import tracemalloc

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrqat import imatrix_file
from lrqat.errors import UserError
from lrqat.imatrix_format import ImatrixFileError, read_entries

Q = "model.layers.1.self_attn.q_proj"
DOWN = "model.layers.0.mlp.down_proj"
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
COLUMNS = {Q: 4, DOWN: 6}
# Own name -> (sums (matrices, in), counts (matrices,)).
ENTRIES = {
    "blk.1.attn_q.weight": ([[4.0, 0.0, 8.0, 1.0]], [2.0]),
    "blk.0.ffn_down.weight": ([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], [10.0]),
}
EXPECTED = {Q: [2.0, 0.0, 4.0, 0.5], DOWN: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}


def write_gguf(path, entries=ENTRIES, kind="imatrix", alignment=32):
    """As IMatrixCollector::save_imatrix in tools/imatrix/imatrix.cpp, by llama.cpp's writer."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["wiki.txt", "código.txt"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_float64("lrqat.test", 0.5)
    writer.add_array("lrqat.numbers", [1, 2, 3])
    for name, (sums, counts) in entries.items():
        writer.add_tensor(f"{name}.in_sum2", np.array(sums, np.float32))
        writer.add_tensor(f"{name}.counts", np.array(counts, np.float32)[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def legacy(entries=ENTRIES, calls=3, tail=b""):
    """As IMatrixCollector::save_imatrix_legacy: (sum / count) * calls."""
    data = struct.pack("<i", len(entries))
    for name, (sums, counts) in entries.items():
        values = (np.array(sums) / np.array(counts)[:, None] * calls).astype("<f4")
        own = name.encode()
        data += struct.pack("<i", len(own)) + own + struct.pack("<ii", calls, values.size)
        data += values.tobytes()
    return data + tail


TAILS = {
    "none": b"",
    "last call": struct.pack("<i", 3),
    "data set": struct.pack("<ii", 3, 8) + b"wiki.txt",
    "empty name": struct.pack("<ii", 3, 0),
}


def check(found, expected=EXPECTED):
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], torch.tensor(values), rtol=1e-6, atol=0)


@pytest.mark.parametrize("alignment", [8, 32, 128])
def test_gguf(tmp_path, alignment):
    path = write_gguf(tmp_path / "i.gguf", alignment=alignment)
    check(imatrix_file.read(path, COLUMNS))
    check(imatrix_file.read(str(path), {DOWN: 6}), {DOWN: EXPECTED[DOWN]})


def test_gguf_equals_what_the_package_reads(tmp_path):
    path = write_gguf(tmp_path / "i.gguf")
    found = read_entries(path)
    for tensor in gguf.GGUFReader(path).tensors:
        name, _, field = tensor.name.rpartition(".")
        ours = getattr(found[name], {"in_sum2": "sums", "counts": "counts"}[field])
        assert np.array_equal(ours, tensor.data.ravel())
    assert set(found) == set(ENTRIES)


@pytest.mark.parametrize("tail", TAILS)
def test_legacy(tmp_path, tail):
    path = tmp_path / "i.dat"
    path.write_bytes(legacy(tail=TAILS[tail]))
    check(imatrix_file.read(path, COLUMNS))


def test_experts_and_those_that_no_token_reached(tmp_path):
    entries = {"blk.0.ffn_gate_exps.weight": ([[2.0, 4.0], [0.0, 0.0], [9.0, 3.0]], [2, 0, 3])}
    path = write_gguf(tmp_path / "i.gguf", entries)
    expected = {EXPERTS: [[1.0, 2.0], [1.0, 1.0], [3.0, 1.0]]}
    check(imatrix_file.read(path, {EXPERTS: 2}), expected)
    # One count for all matrices, which the legacy form always has.
    one = {"blk.0.ffn_gate_up_exps.weight": ([[2.0, 4.0], [6.0, 8.0]], [2])}
    expected = {EXPERTS: [[1.0, 2.0], [3.0, 4.0]]}
    check(imatrix_file.read(write_gguf(tmp_path / "j.gguf", one), {EXPERTS: 2}), expected)
    (tmp_path / "j.dat").write_bytes(legacy(one))
    check(imatrix_file.read(tmp_path / "j.dat", {EXPERTS: 2}), expected)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma3", "phi3", "gpt2", "olmo2"])
def test_names_are_those_of_the_converter(arch):
    kind = {text: number for number, text in gguf.MODEL_ARCH_NAMES.items()}[arch]
    names = gguf.get_tensor_name_map(kind, 30)
    parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    parts += ["self_attn.qkv_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    ours = [f"model.layers.{block}.{part}" for part in parts for block in (0, 29)] + ["lm_head"]
    ours += [f"transformer.h.11.{part}" for part in ("attn.c_attn", "mlp.c_fc", "mlp.c_proj")]
    checked = 0
    for name in ours:
        if theirs := names.get_name(name):
            assert theirs in imatrix_file.llama_cpp_names(name)
            checked += 1
    assert checked >= 4


def test_the_table_of_names_is_not_changed():
    before = dict(gguf.TensorNameMap.block_mappings_cfg)
    assert imatrix_file.llama_cpp_names("model.layers.7.mlp.up_proj") == ["blk.7.ffn_up"]
    assert imatrix_file.llama_cpp_names("lm_head") == ["output"]
    assert before == gguf.TensorNameMap.block_mappings_cfg


def test_a_module_without_a_name_and_a_missing_package(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "i.gguf")
    for name in (
        "model.layers.0.mlp.experts.3.gate_proj",
        "nonsense",
        "model.layers.x.mlp.up_proj",
    ):
        with pytest.raises(UserError, match=name):
            imatrix_file.read(path, {name: 4})
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "gguf":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'lrqat\[gguf\]'"):
        imatrix_file.read(path, COLUMNS)


def changed(name, sums, counts=(2.0,)):
    return {**ENTRIES, name: (sums, list(counts))}


OWN = "blk.1.attn_q.weight"
WRONG = {
    "NaN": (changed(OWN, [[1, 2, float("nan"), 1]]), "not finite"),
    "infinite": (changed(OWN, [[1, 2, float("inf"), 1]]), "not finite"),
    "negative": (changed(OWN, [[1, 2, -1e-9, 1]]), "negative"),
    "count NaN": (changed(OWN, [[1, 2, 3, 4]], [float("nan")]), "counts"),
    "count negative": (changed(OWN, [[1, 2, 3, 4]], [-1]), "counts"),
    "no token": (changed(OWN, [[0, 0, 0, 0]], [0]), "no token"),
    "count tiny": (changed(OWN, [[1e30, 2, 3, 4]], [1e-30]), "float32"),
    "other width": (changed(OWN, [[1, 2, 3, 4, 5]]), "5 sums"),
    "counts do not fit": (changed(OWN, [[1, 2, 3, 4]], [1, 1, 1]), "3 counts"),
    "two of one": (changed("blk.1.time_mix_receptance.weight", [[1, 2, 3, 4]]), "two entries"),
    "missing": ({"blk.0.ffn_down.weight": ENTRIES["blk.0.ffn_down.weight"]}, Q),
}


@pytest.mark.parametrize("case", WRONG)
def test_values_that_cannot_be_meant(tmp_path, case):
    entries, words = WRONG[case]
    path = write_gguf(tmp_path / "i.gguf", entries)
    with pytest.raises(ImatrixFileError, match=words) as caught:
        imatrix_file.read(path, COLUMNS)
    assert "i.gguf" in str(caught.value)


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


floats = st.floats(0, 2.0**100, width=32)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sums=st.lists(floats, min_size=4, max_size=4), count=st.integers(1, 2**24))
def test_both_forms_give_the_mean(sums, count, tmp_path):
    entries = {OWN: ([sums], [float(count)])}
    expected = np.array(sums) / count
    path = tmp_path / "i"
    path.unlink(missing_ok=True)
    found = imatrix_file.read(write_gguf(path, entries), {Q: 4})[Q]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-44)
    path.write_bytes(legacy(entries))
    found = imatrix_file.read(path, {Q: 4})[Q]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-44)
