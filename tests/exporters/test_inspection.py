"""What is said of a file; and files that nobody vouches for: a message, soon, in little memory."""

import contextlib
import json
import shutil
import struct
import time
import tracemalloc

import numpy as np
import onnx
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from exporters import gguf
from exporters.description import plain
from exporters.gguf.file.header import read_header
from exporters.inspection import inspect, mismatches
from lrqat.checkpoint import manifest
from lrqat.checkpoint.reader import Checkpoint
from lrqat.checkpoint.safetensors_file import TensorFile
from lrqat.errors import CheckpointError, UserError

SECONDS = 5.0
FUZZ = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@contextlib.contextmanager
def bounded(size):
    """Fails if the block takes long, or memory beyond a multiple of `size`."""
    tracemalloc.start()
    start = time.monotonic()
    try:
        yield
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert time.monotonic() - start < SECONDS
    assert peak < 30 * size + 2**22


def survives(path, size):
    """Inspecting gives a description that is JSON, or a message; returns whether the former."""
    with bounded(size):
        try:
            found = inspect(path)
        except UserError:
            return False
    json.dumps(found.to_json(), allow_nan=False)
    return True


@pytest.fixture(scope="module")
def good(fused_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    gguf.write(gguf.plan(Checkpoint.open(fused_checkpoint)), path)
    return path


def test_a_gguf_file(good, fused_checkpoint):
    found = inspect(good)
    assert (found.kind, found.files) == ("GGUF", ["model.gguf"])
    assert found.bytes == good.stat().st_size
    header = read_header(good)
    assert found.tensors == len(header.tensors)
    assert found.types["Q4_0"].tensors == 14
    assert found.types["Q4_0"].bytes * 8 == 4.5 * found.types["Q4_0"].weights
    assert found.bits_per_weight > 4.5
    assert found.hyperparameters["llama.block_count"] == 2
    assert found.vocabulary["tokenizer.ggml.tokens"] == 512
    assert found.provenance["lrqat.grid"] == "q4_0"
    assert mismatches(good, Checkpoint.open(fused_checkpoint)) == {}


def test_a_checkpoint(fused_checkpoint):
    found = inspect(fused_checkpoint)
    assert found.kind == "fused checkpoint"
    assert found.types["q4_0"].tensors == 14
    assert found.types["F32"].weights > 0
    assert found.hyperparameters["num_hidden_layers"] == 2
    assert found.vocabulary["vocab_size"] == 512
    stored = sum(total.bytes for total in found.types.values())
    weights = (fused_checkpoint / "model.safetensors").stat().st_size
    assert weights - 20_000 < stored < weights


def test_an_onnx_folder(onnx_folder):
    found = inspect(onnx_folder("q4_0"))
    assert found.kind == "ONNX"
    assert found.files == ["model.onnx", "model.onnx_data"]
    assert found.types["INT4"].tensors == 14
    assert 8 * found.types["INT4"].bytes == 4 * found.types["INT4"].weights
    assert found.hyperparameters["type"] == "llama"
    assert found.provenance["lrqat.grid"] == "q4_0"


def test_a_file_of_somebody_else(tmp_path):
    """Another architecture, types we do not write, one that nobody knows."""
    path = tmp_path / "other.gguf"
    writer = GGUFWriter(path, "mamba")
    writer.add_float32("mamba.odd", float("nan"))
    writer.add_string("general.name", "red \x1b[31m" + 500 * "x")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    data = np.zeros((4, 210), np.uint8)
    writer.add_tensor("k", data, raw_dtype=GGMLQuantizationType.Q6_K)
    for name in ("u", "v"):
        writer.add_tensor(name, np.zeros(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack("<QcIQI", 1, b"u", 1, 64, 0)) + 8 + 1 + 4 + 8
    content[at : at + 4] = struct.pack("<I", 777)
    path.write_bytes(content)
    found = inspect(path)
    assert {kind: total.tensors for kind, total in found.types.items()} == {
        "Q6_K": 1, "type 777": 1, "F32": 1,
    }  # fmt: skip
    assert found.types["type 777"].bytes == 256
    assert found.hyperparameters["mamba.odd"] == "nan"
    assert "\x1b" not in found.provenance["general.name"]
    assert len(found.provenance["general.name"]) == 200
    with pytest.raises(gguf.GgufFileError, match="unknown type 777"):
        read_header(path)


def test_what_is_shown_is_plain():
    assert plain([1, "a\n", None]) == [1, "a\ufffd", "NoneType"]
    assert plain(list(range(9))) == "9 items"
    assert plain(float("inf")) == "inf"
    assert plain({"a": 1}) == "dict"
    assert plain(b"x") == "bytes"


@FUZZ
@given(data=st.data())
def test_mutated_gguf(data, good, tmp_path):
    content = mutated(data, good.read_bytes(), focus=4000)
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    survives(path, len(content))


@FUZZ
@given(data=st.data())
def test_mutated_safetensors(data, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": np.arange(40, dtype=np.int32), "b": np.ones((3, 5), np.float32)}, path)
    content = mutated(data, path.read_bytes(), focus=200)
    path.write_bytes(content)
    with bounded(len(content)), contextlib.suppress(CheckpointError):
        file = TensorFile(path)
        for name, stored in file.tensors.items():
            assert file.read(name).nbytes == stored.nbytes


@FUZZ
@given(data=st.data())
def test_mutated_checkpoints(data, fused_checkpoint, tmp_path):
    """Hashes agree with the altered files, as a hostile writer would have it."""
    folder = tmp_path / "fused"
    if not folder.is_dir():
        shutil.copytree(fused_checkpoint, folder)
    name = data.draw(st.sampled_from([manifest.FILE_NAME, "config.json", "model.safetensors"]))
    for file in (manifest.FILE_NAME, "config.json", "model.safetensors"):
        shutil.copy(fused_checkpoint / file, folder)
    original = (folder / name).read_bytes()
    if name.endswith("json") and data.draw(st.booleans()):
        value = json.loads(original)
        replace_somewhere(data, value)
        content = json.dumps(value).encode()
    else:
        content = mutated(data, original, focus=3000)
    (folder / name).write_bytes(content)
    if name != manifest.FILE_NAME:
        described = json.loads((folder / manifest.FILE_NAME).read_text())
        described["files"] = manifest.describe_files(folder, list(described["files"]))
        (folder / manifest.FILE_NAME).write_text(json.dumps(described))
    size = sum(file.stat().st_size for file in folder.iterdir())
    if survives(folder, size) and name != "config.json":
        with contextlib.suppress(UserError):
            checkpoint = Checkpoint.open(folder)
            for module in checkpoint.quantized_names:
                checkpoint.quantized(module)


@FUZZ
@given(data=st.data())
def test_mutated_onnx(data, onnx_folder, tmp_path):
    folder = tmp_path / "onnx"
    if not folder.is_dir():
        shutil.copytree(onnx_folder("q4_0"), folder)
    content = mutated(data, (onnx_folder("q4_0") / "model.onnx").read_bytes(), focus=10**9)
    (folder / "model.onnx").write_bytes(content)
    survives(folder, 4 * len(content))


def mutated(data, content, focus):
    """Cut, overwritten with bytes or with a large number, or with bytes put in."""
    at = data.draw(st.one_of(st.integers(0, focus), st.integers(0, 10**9))) % len(content)
    piece = data.draw(
        st.one_of(
            st.binary(min_size=1, max_size=12),
            st.sampled_from([struct.pack("<Q", n) for n in (0, 2**31, 2**63, 2**64 - 1)]),
        )
    )
    how = data.draw(st.sampled_from(["cut", "over", "in", "twice"]))
    if how == "cut":
        return content[:at]
    if how == "in":
        return content[:at] + piece + content[at:]
    if how == "twice":
        return content[:at] + content[at:] * 2
    return (content[:at] + piece + content[at + len(piece) :])[: len(content)]


def replace_somewhere(data, value):
    """Put an odd value at a random place of some JSON."""
    odd = data.draw(
        st.sampled_from([None, True, -1, 0, 2**70, 1e308, "x", "../y", [], {}, [[]], {"a": []}])
    )
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if not isinstance(value[key], dict | list) or data.draw(st.booleans()):
            value[key] = odd
            return
        value = value[key]


@pytest.fixture
def onnx_copy(onnx_folder, tmp_path):
    return shutil.copytree(onnx_folder("q4_0"), tmp_path / "inside" / "onnx")


def point_to(folder, location, **entries):
    """Let the first external tensor of model.onnx lie elsewhere."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.external_data)
    values = {entry.key: entry.value for entry in tensor.external_data}
    del tensor.external_data[:]
    for key, value in (values | {"location": location} | entries).items():
        tensor.external_data.add(key=key, value=str(value))
    (folder / "model.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize("location", ["../secret", "{outside}", "link", "", ".", "gone", "a\0b"])
def test_onnx_data_outside_its_folder_is_refused(location, onnx_copy, fused_checkpoint):
    outside = onnx_copy.parent / "secret"
    outside.write_bytes(bytes(10**6))
    (onnx_copy / "link").symlink_to(outside)
    point_to(onnx_copy, location.format(outside=outside))
    for look in (inspect, lambda path: mismatches(path, Checkpoint.open(fused_checkpoint))):
        with pytest.raises(UserError, match=r"is not usable|not a valid ONNX file"):
            look(onnx_copy)


@pytest.mark.parametrize("entries", [{"offset": 2**62}, {"length": 2**62}, {"length": 1}])
def test_onnx_data_that_is_cut_off_is_refused(entries, onnx_copy):
    point_to(onnx_copy, "model.onnx_data", **entries)
    with pytest.raises(UserError, match="it is cut off"):
        inspect(onnx_copy)
