"""ONNX folders that were damaged, altered or linked elsewhere: an error or a mismatch."""

import shutil

import numpy as np
import onnx
import pytest

from exporters import onnx as exporter
from exporters.inspection import inspect
from exporters.onnx.folder.model_file import OnnxFileError
from lrqat.checkpoint.reader import Checkpoint


@pytest.fixture
def copy(onnx_folder, tmp_path):
    return shutil.copytree(onnx_folder("q4_0"), tmp_path / "copy")


@pytest.mark.parametrize("cut", [0, 10, 5000])
@pytest.mark.parametrize("name", ["model.onnx", "model.onnx_data"])
def test_truncated_files_are_named(copy, fused_checkpoint, name, cut):
    path = copy / name
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(OnnxFileError):
        exporter.verify(copy, Checkpoint.open(fused_checkpoint))


def test_data_outside_the_folder_is_not_read(copy, fused_checkpoint, tmp_path):
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    shutil.move(copy / "model.onnx_data", tmp_path / "secret")
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret"
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(OnnxFileError):
        exporter.verify(copy, Checkpoint.open(fused_checkpoint))


@pytest.mark.filterwarnings("ignore:Ignoring unknown external data key")
def test_random_damage_to_the_graph_is_an_error_or_a_mismatch_never_a_crash(copy, fused_checkpoint):
    checkpoint = Checkpoint.open(fused_checkpoint)
    path = copy / "model.onnx"
    good, generator = path.read_bytes(), np.random.default_rng(0)
    for _ in range(40):
        bad = bytearray(good)
        for place in generator.integers(0, len(bad), 3):
            bad[place] = generator.integers(0, 256)
        path.write_bytes(bad)
        try:
            counts = exporter.verify(copy, checkpoint)
        except OnnxFileError:
            continue
        assert counts.keys() == {t.name for t in exporter.plan(checkpoint).tensors}


@pytest.mark.parametrize("change", [("axis", 1), ("block_size", 64)])
def test_integers_under_another_axis_or_block_do_not_verify(copy, fused_checkpoint, change):
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    node = next(n for n in model.graph.node if n.op_type == "DequantizeLinear")
    next(a for a in node.attribute if a.name == change[0]).i = change[1]
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    counts = exporter.verify(copy, Checkpoint.open(fused_checkpoint))
    assert sum(map(bool, counts.values())) == 1
    assert counts[node.input[0]] > 0


def test_a_large_initializer_that_nobody_planned_does_not_verify(copy, fused_checkpoint):
    """The tracer's copy of a weight, say, which the file would hold twice."""
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.zeros((512, 512), np.float32), "spare")
    )
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    counts = exporter.verify(copy, Checkpoint.open(fused_checkpoint))
    assert {name: count for name, count in counts.items() if count} == {"spare": 512 * 512}


@pytest.mark.parametrize("said", ["", "[]", '{"opset": "x"}', '{"preset": []}', '{"nobody": 1}'])
def test_options_in_the_file_that_are_no_options_are_an_error(said, copy, fused_checkpoint):
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    next(p for p in model.metadata_props if p.key == "lrqat.options").value = said
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(OnnxFileError, match=r"lrqat\.options .* damaged"):
        exporter.verify(copy, Checkpoint.open(fused_checkpoint))


@pytest.fixture
def cached(copy, tmp_path):
    """The folder as the Hugging Face cache keeps it: a snapshot of links to blobs."""
    blobs, snapshot = tmp_path / "x" / "blobs", tmp_path / "x" / "snapshots" / "main"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(copy.iterdir())):
        shutil.move(file, blobs / f"{i:040x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{i:040x}")
    return snapshot


def test_links_within_a_hugging_face_cache_are_followed(cached, fused_checkpoint):
    checkpoint = Checkpoint.open(fused_checkpoint)
    assert not any(exporter.verify(cached, checkpoint).values())
    assert inspect(cached).files == ["model.onnx", "model.onnx_data"]


def test_links_that_leave_a_hugging_face_cache_are_refused(cached, fused_checkpoint, tmp_path):
    secret = tmp_path / "secret"
    shutil.copyfile(cached / "model.onnx_data", secret)
    (cached / "model.onnx_data").unlink()
    (cached / "model.onnx_data").symlink_to(secret)
    with pytest.raises(OnnxFileError, match="is not usable"):
        exporter.verify(cached, Checkpoint.open(fused_checkpoint))
