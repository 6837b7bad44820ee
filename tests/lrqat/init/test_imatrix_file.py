"""Importance matrices of llama.cpp, both forms: values, names, and what cannot be meant."""

import builtins

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrqat.errors import UserError
from lrqat.init import imatrix_file
from lrqat.init.imatrix_format import ImatrixFileError, read_entries
from tests.support.imatrix import COLUMNS, DOWN, ENTRIES, OWN, TAILS, Q, legacy, write_gguf

EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
EXPECTED = {Q: [2.0, 0.0, 4.0, 0.5], DOWN: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}


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
