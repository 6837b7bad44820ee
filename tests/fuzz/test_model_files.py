"""GGUF files, importance matrices, safetensors and ONNX folders that nobody vouches for."""

import json
import os
import shutil
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from exporters import gguf, onnx
from exporters.format import recognise
from exporters.gguf.file.header import GgufFileError, read_header
from exporters.inspection import inspect
from exporters.onnx.folder.model_file import OnnxFileError, read_model
from lrqat.checkpoint.reader import Checkpoint
from lrqat.checkpoint.safetensors_file import TensorFile
from lrqat.errors import CheckpointError, UserError
from lrqat.init.imatrix_format import ImatrixFileError, read_entries
from lrqat.models.from_gguf.folder import model_folder
from lrqat.models.hub import load_tokenizer
from lrqat.runtimes.genai_config import read_genai_config
from tests.fuzz.harness import altered_bytes, altered_json, fuzz, limited, outcome
from tests.support.imatrix import ENTRIES, legacy, write_gguf

ANY = st.data()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def gguf_file(fused_checkpoint, folder):
    plan = gguf.plan(Checkpoint.open(fused_checkpoint))
    gguf.write(plan, folder / "good.gguf")
    return (folder / "good.gguf").read_bytes()


@pytest.fixture(scope="module")
def onnx_copy(onnx_folder, folder):
    return shutil.copytree(onnx_folder("q4_0"), folder / "onnx")


@fuzz(80)
@given(data=ANY)
def test_gguf(gguf_file, folder, data):
    path = folder / "a.gguf"
    path.write_bytes(data.draw(altered_bytes([gguf_file], beginning=30_000)))
    outcome(lambda: read_header(path, unknown_types=True))
    outcome(lambda: inspect(path))


@fuzz(10)
@given(data=ANY)
def test_gguf_as_a_base_model(gguf_file, folder, data, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    path = folder / "base.gguf"
    path.write_bytes(data.draw(altered_bytes([gguf_file], beginning=30_000)))
    outcome(lambda: model_folder(path))
    outcome(lambda: load_tokenizer(path))


@fuzz(25)
@given(data=ANY)
def test_no_altered_gguf_is_verified(gguf_file, fused_checkpoint, folder, data):
    altered = data.draw(altered_bytes([gguf_file]))
    path, checkpoint = folder / "b.gguf", Checkpoint.open(fused_checkpoint)
    path.write_bytes(altered)
    found = outcome(lambda: gguf.verify(path, checkpoint))
    accepted = not isinstance(found, UserError) and not any(found.values())
    assert not accepted or _same_but_for_description(path, folder / "good.gguf")


def _same_but_for_description(path, good):
    """Whether two files differ in padding, names and provenance alone: nothing that is computed."""
    ours, theirs = read_header(path), read_header(good)
    kept = {k: v for k, v in ours.metadata.items() if k.startswith(("llama.", "tokenizer."))}
    for key, value in kept.items():
        np.testing.assert_array_equal(value, theirs.metadata[key])
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, info in ours.tensors.items():
        np.testing.assert_array_equal(info.read(), theirs.tensors[name].read())
    return True


@fuzz(110)
@given(data=ANY)
def test_importance_matrices(folder, data):
    whole = write_gguf(folder / "good.imatrix", ENTRIES).read_bytes()
    path = folder / "a.imatrix"
    path.write_bytes(data.draw(altered_bytes([whole, legacy()])))
    outcome(lambda: read_entries(path))


TENSORS = save({"a": np.ones((4, 6), np.float32), "b": np.zeros(3, np.int8), "": np.ones(())})


@fuzz(110)
@given(data=ANY)
def test_safetensors(folder, data):
    path = folder / "a.safetensors"
    path.write_bytes(data.draw(altered_bytes([TENSORS])))
    found = outcome(lambda: TensorFile(path))
    if not isinstance(found, UserError):
        for name in found.tensors:
            outcome(lambda name=name: found.read(name))


@fuzz(80)
@given(data=ANY)
def test_safetensors_headers(folder, data):
    length = struct.unpack("<Q", TENSORS[:8])[0]
    header = data.draw(altered_json([json.loads(TENSORS[8 : 8 + length])]))
    text = json.dumps(header).encode()
    (folder / "h.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(99))
    outcome(lambda: TensorFile(folder / "h.safetensors"))


@fuzz(25)
@given(data=ANY)
def test_onnx_folders(onnx_folder, onnx_copy, data):
    good = (onnx_folder("q4_0") / "model.onnx").read_bytes()
    (onnx_copy / "model.onnx").write_bytes(data.draw(altered_bytes([good])))
    outcome(lambda: recognise(onnx_copy))
    outcome(lambda: inspect(onnx_copy))


@fuzz(10)
@given(data=ANY)
def test_no_onnx_folder_with_altered_data_is_verified(onnx_folder, fused_checkpoint, folder, data):
    copy = folder / "onnx-data"
    if not copy.exists():
        shutil.copytree(onnx_folder("q4_0"), copy)
    good = (onnx_folder("q4_0") / "model.onnx_data").read_bytes()
    (copy / "model.onnx_data").write_bytes(altered := data.draw(altered_bytes([good])))
    found = outcome(lambda: onnx.verify(copy, Checkpoint.open(fused_checkpoint)))
    refused = isinstance(found, UserError) or any(found.values())
    # External data may be padded, and have something behind its end.
    assert refused or altered[: len(good)] == good or _equal_tensors(copy, onnx_folder("q4_0"))


def _equal_tensors(copy, good):
    ours, theirs = (read_model(path).graph.initializers for path in (copy, good))
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name].const_value.numpy(), value.const_value.numpy())
    return True


@fuzz(90)
@given(data=ANY)
def test_genai_configurations(onnx_folder, folder, data):
    """Whatever the file says, nothing reaches the runtime but plain values of known keys."""
    good = json.loads((onnx_folder("q4_0") / "genai_config.json").read_text())
    (folder / "genai_config.json").write_text(json.dumps(data.draw(altered_json([good]))))
    found = outcome(lambda: read_genai_config(folder))
    if not isinstance(found, UserError):
        config, _ = found
        assert config["model"]["decoder"].get("filename", "model.onnx") == "model.onnx"
        assert config["model"]["decoder"]["session_options"].keys() <= {
            "log_id", "provider_options", "session.qdq_matmulnbits_accuracy_level",
            "session.enable_dq_matmulnbits_fusion", "session.x64quantprecision",
        }  # fmt: skip


def string(text):
    return struct.pack("<Q", len(text)) + text


def entry(body):
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string(b"k") + struct.pack("<I", 9) + body


ARRAYS = {
    "a numeric array of 2^30 bytes": (entry(struct.pack("<IQ", 0, 2**30)), 2**30),
    "2^26 empty strings": (entry(struct.pack("<IQ", 8, 2**26)), 2**29),
    "a string of 2^30 bytes": (entry(struct.pack("<IQQ", 8, 1, 2**30)), 2**30),
    "2^25 metadata entries": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**25), 2**29),
    "2^24 tensors": (b"GGUF" + struct.pack("<IQQ", 3, 2**24, 0), 2**29),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_large_gguf_files_are_refused_at_once(name, tmp_path):
    """Holes in a file cost its author nothing."""
    start, size = ARRAYS[name]
    path = tmp_path / "a.gguf"
    path.write_bytes(start)
    os.truncate(path, len(start) + size)
    with limited(mapped=size), pytest.raises(GgufFileError, match="more than any model has"):
        read_header(path)


def test_importance_matrices_of_millions_of_strings_are_refused(tmp_path):
    path = tmp_path / "a.imatrix"
    path.write_bytes(entry(struct.pack("<IQ", 8, 2**26)))
    os.truncate(path, 2**30)
    with limited(mapped=2**30), pytest.raises(ImatrixFileError, match="more than any model has"):
        read_entries(path)


def test_a_safetensors_header_of_92_megabytes_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 92_000_000) + b"{" + b" " * 92_000_000)
    with limited(), pytest.raises(CheckpointError, match="header"):
        TensorFile(path)


def message(number, content):
    size, length = bytearray(), len(content)
    while length > 127:
        size.append(length & 127 | 128)
        length >>= 7
    return bytes([number << 3 | 2, *size, length]) + content


PROTOBUFS = {
    "ten million nodes": message(7, b"\x0a\x00" * 10**7),
    "ten million attributes": message(7, message(1, b"\x2a\x00" * 10**7)),
    "a hundred million numbers": message(7, message(5, message(7, b"\x01" * 10**8))),
    "ten million dimensions": message(7, message(5, b"\x08\x01" * 10**7)),
}


@pytest.mark.parametrize("name", PROTOBUFS)
def test_onnx_files_of_millions_of_parts_are_refused(name, tmp_path):
    (tmp_path / "model.onnx").write_bytes(PROTOBUFS[name])
    with limited(), pytest.raises(OnnxFileError, match="millions of nodes"):
        read_model(tmp_path)


PIPES = {
    "a.gguf": lambda path: read_header(path),
    "a.imatrix": lambda path: read_entries(path),
    "a.safetensors": lambda path: TensorFile(path),
    "model.onnx": lambda path: read_model(path.parent),
    "genai_config.json": lambda path: read_genai_config(path.parent),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", PIPES)
def test_nobody_waits_for_a_pipe(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError):
        PIPES[name](tmp_path / name)
