"""Making llama-quantize's files; what needs its library runs where LIBLLAMA names one."""

import os

import numpy as np
import pytest

from benchmarks.llama_quantize import find_library, make_baseline, quantize_file
from exporters.gguf.file.header import read_header
from lrqat.demo.baseline import write_unquantized
from lrqat.errors import RuntimeUnavailableError, UserError
from lrqat.models.small_llama import make_tokenizer
from lrqat.recipes.file_size import data_bytes
from tests.support.checkpoints import TEXT
from tests.support.imatrix import write_gguf
from tests.support.zoo import VOCABULARY, make_from, small_llama

needs_library = pytest.mark.skipif(
    not os.environ.get("LIBLLAMA"), reason="LIBLLAMA names no libllama with llama_model_quantize"
)
DOWN = "blk.{}.ffn_down.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """GGUF of a Llama of 8 layers, with the first of which llama-quantize is more careful."""
    path = tmp_path_factory.mktemp("source") / "source.gguf"
    tokenizer = make_tokenizer([TEXT], vocabulary=VOCABULARY)
    write_unquantized(make_from(small_llama(num_hidden_layers=8)), tokenizer, path)
    return path


def test_a_model_is_written_as_it_is(source):
    model = make_from(small_llama(num_hidden_layers=8))
    tensors = read_header(source).tensors
    assert {info.type_name for info in tensors.values()} == {"F32"}
    own = model.state_dict()["model.layers.3.mlp.down_proj.weight"].numpy()
    written = np.frombuffer(tensors[DOWN.format(3)].read().tobytes(), np.float32)
    np.testing.assert_array_equal(written, own.ravel())


@needs_library
def test_an_importance_matrix_changes_types_and_bytes(source, tmp_path):
    inputs = np.geomspace(1, 10_000, 96)[None]
    entries = {DOWN.format(i): (inputs, [1.0]) for i in range(8)}
    imatrix = write_gguf(tmp_path / "imatrix.gguf", entries)
    plain, weighted = tmp_path / "plain.gguf", tmp_path / "weighted.gguf"
    quantize_file(source, plain, "Q4_0")
    quantize_file(source, weighted, "q4_0", imatrix)
    before, after = read_header(plain).tensors, read_header(weighted).tensors
    types = [(before[DOWN.format(i)].type_name, after[DOWN.format(i)].type_name) for i in (0, 1)]
    assert types == [("Q4_0", "Q4_1"), ("Q4_0", "Q4_0")]
    changed = {n for n in before if before[n].read().tobytes() != after[n].read().tobytes()}
    assert changed == set(entries)


@needs_library
def test_the_baseline_of_a_folder_is_counted_to_the_byte(tiny_model, tmp_path):
    path = tmp_path / "baseline.gguf"
    nbytes = make_baseline(tiny_model, path, "Q4_K_M")
    tensors = read_header(path).tensors
    kinds = {name: info.type_name for name, info in tensors.items()}
    shapes = {name: info.shape for name, info in tensors.items()}
    begin = min(info.start for info in tensors.values())
    assert {"Q5_0", "Q8_0", "Q4_K", "Q6_K"} <= {*kinds.values()}
    assert nbytes == begin + data_bytes(kinds, shapes)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@needs_library
def test_what_llama_quantize_refuses_is_said(source, tmp_path):
    (tmp_path / "no.gguf").write_bytes(b"GGML")
    with pytest.raises(UserError, match=r"failed \(1\): (.|\n)*invalid magic"):
        quantize_file(tmp_path / "no.gguf", tmp_path / "a.gguf", "Q4_0")
    with pytest.raises(UserError, match="unknown recipe 'Q4_X'"):
        quantize_file(source, tmp_path / "a.gguf", "Q4_X")


def test_a_library_that_is_not_there_is_asked_for(tmp_path, monkeypatch):
    for named in ("", str(tmp_path / "nowhere.so")):
        monkeypatch.setenv("LIBLLAMA", named)
        with pytest.raises(RuntimeUnavailableError, match=r"npm package @node-llama-cpp/linux-x64"):
            find_library()
