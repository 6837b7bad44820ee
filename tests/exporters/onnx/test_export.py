"""The ONNX folder: layout, bytes, refusals, and that it appears whole or not at all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from exporters import onnx as exporter
from exporters.onnx.folder.companions import genai_config
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import ExportRefusedError, OutputError
from lrqat.models import hub
from tests.support.grids import SYMMETRIC_GRIDS
from tests.support.onnx_exports import write_onnx


@pytest.fixture
def copy(onnx_folder, tmp_path):
    return shutil.copytree(onnx_folder("q4_0"), tmp_path / "copy")


@pytest.mark.parametrize("grid", SYMMETRIC_GRIDS)
def test_the_bytes_are_the_checkpoints_by_onnxs_own_reader(grid, onnx_folder, make_fused):
    """numpy_helper, not our reader: integers, scales and floats of every planned tensor."""
    folder, checkpoint = onnx_folder(grid), Checkpoint.open(make_fused(grid))
    stored = {t.name: t for t in onnx.load(folder / "model.onnx").graph.initializer}
    for name in checkpoint.quantized_names:
        tensor = checkpoint.quantized(name)
        q = onnx.numpy_helper.to_array(stored[f"{name}.weight"]).astype(np.int8)
        scale = onnx.numpy_helper.to_array(stored[f"{name}.weight_scale"])
        assert np.array_equal(q.T, tensor.q)
        assert np.array_equal(scale.T if scale.ndim == 2 else scale[:, None], tensor.scale)
    for name in checkpoint.floating_names:
        value = onnx.numpy_helper.to_array(stored[name])
        expected = checkpoint.floating(name).astype(np.float32)
        assert np.array_equal(value, expected.T if name == "lm_head.weight" else expected)
    assert not any(exporter.verify(folder, checkpoint).values())


@pytest.mark.parametrize("grid", SYMMETRIC_GRIDS)
def test_the_file_is_valid_onnx_with_the_names_that_runtimes_expect(grid, onnx_folder):
    path = onnx_folder(grid) / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = ir.load(path)
    past = [f"past_key_values.{i}.{part}" for i in (0, 1) for part in ("key", "value")]
    present = [f"present.{i}.{part}" for i in (0, 1) for part in ("key", "value")]
    assert [v.name for v in model.graph.inputs] == [
        *("input_ids", "attention_mask", "position_ids"),
        *past,
    ]
    assert [v.name for v in model.graph.outputs] == ["logits", *present]
    shape = [str(d) for d in model.graph.inputs[3].shape]
    assert shape == ["batch_size", "2", "past_sequence_length", "32"]
    assert {v.dtype for v in list(model.graph.inputs)[:3]} == {ir.DataType.INT64}


def test_the_layout_is_the_one_that_onnx_runtime_fuses(onnx_folder):
    model = ir.load(onnx_folder("q4_0") / "model.onnx")
    nodes = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    assert len(nodes) == 14
    for node in nodes:
        weight, scale = node.inputs
        rows, columns = weight.shape
        assert weight.dtype == ir.DataType.INT4
        assert tuple(scale.shape) == (rows // 32, columns)
        assert node.attributes["axis"].value == 0
        assert node.attributes["block_size"].value == 32
        assert [use.op_type for use in node.outputs[0].consumers()] == ["MatMul"]


def test_two_exports_are_the_same_bytes(onnx_folder, make_fused, tmp_path):
    """Traced anew, and so are those whose trace the tests use again."""
    first, again = onnx_folder("q4_0"), tmp_path / "again"
    exporter.write(exporter.plan(Checkpoint.open(make_fused("q4_0"))), again)
    assert sorted(p.name for p in first.iterdir()) == sorted(p.name for p in again.iterdir())
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_the_file_says_where_it_comes_from_and_nothing_about_the_machine(onnx_folder, make_fused):
    path = onnx_folder("q4_0") / "model.onnx"
    properties = {p.key: p.value for p in onnx.load(path, load_external_data=False).metadata_props}
    assert properties["lrqat.grid"] == "q4_0"
    assert len(properties["lrqat.checkpoint_sha256"]) == 64
    data = path.read_bytes()
    for private in (os.getcwd(), sys.prefix, str(make_fused("q4_0")), "site-packages"):
        assert private.encode() not in data


def test_the_plan_writes_nothing_and_counts_the_bytes(make_fused, onnx_folder):
    folder = make_fused("int4-g128")
    before = sorted(folder.iterdir())
    plan = exporter.plan(Checkpoint.open(folder), exporter.Options())
    assert sorted(folder.iterdir()) == before
    listed = json.loads(json.dumps(plan.to_json()))["tensors"]
    assert {entry["type"] for entry in listed if entry["quantized"]} == {"INT4"}
    data = (onnx_folder("int4-g128") / "model.onnx_data").stat().st_size
    assert abs(data - plan.tensor_bytes) < 4096 * (len(plan.tensors) + 1), "padding apart"


@pytest.mark.parametrize("options", [{"opset": 20}, {"accuracy_level": 3}])
def test_options_that_are_not_offered_are_refused(options):
    with pytest.raises(ExportRefusedError, match="not offered; choose"):
        exporter.Options(**options)


def test_an_existing_folder_is_untouched_without_overwrite(copy, make_fused):
    plan = exporter.plan(Checkpoint.open(make_fused("q8_0")))
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    with pytest.raises(OutputError, match="--overwrite"):
        write_onnx(plan, copy)
    assert before == {p.name: p.read_bytes() for p in copy.iterdir()}
    write_onnx(plan, copy, overwrite=True)
    assert not any(exporter.verify(copy, plan.checkpoint).values())
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]


def test_a_failure_while_writing_leaves_the_old_folder_and_no_litter(copy, make_fused, monkeypatch):
    before = {p.name: p.read_bytes() for p in copy.iterdir()}

    def failing(plan, folder, config):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("exporters.onnx.writer.write_companions", failing)
    with pytest.raises(OutputError, match="disk is full"):
        write_onnx(exporter.plan(Checkpoint.open(make_fused("q8_0"))), copy, overwrite=True)
    assert before == {p.name: p.read_bytes() for p in copy.iterdir()}
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]


def test_bytes_that_read_back_differently_are_not_published(make_fused, tmp_path, monkeypatch):
    def flip(plan, folder, config):
        data = folder / "model.onnx_data"
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 0x11
        data.write_bytes(content)

    monkeypatch.setattr("exporters.onnx.writer.write_companions", flip)
    plan = exporter.plan(Checkpoint.open(make_fused("q4_0")))
    with pytest.raises(OutputError, match="read back differently"):
        write_onnx(plan, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("domain", "match"),
    [
        ("", r"is not valid ONNX .*NoSuchOp"),  # found by onnx's checker
        ("somebody.else", r"ONNX Runtime .* does not load it .*NoSuchOp"),
    ],
)
def test_a_graph_that_nothing_runs_is_not_published(
    domain, match, make_fused, tmp_path, monkeypatch
):
    """Every weight is right and the file still cannot run."""
    pytest.importorskip("onnxruntime")

    def rename_an_operator(plan, folder, config):
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        node = next(node for node in model.graph.node if node.op_type == "MatMul")
        node.op_type, node.domain = "NoSuchOp", domain
        if domain:
            model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
        (folder / "model.onnx").write_bytes(model.SerializeToString())

    monkeypatch.setattr("exporters.onnx.writer.write_companions", rename_an_operator)
    with pytest.raises(OutputError, match=match):
        write_onnx(exporter.plan(Checkpoint.open(make_fused("q4_0"))), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_verification_keeps_no_tensor_in_memory(copy, fused_checkpoint, monkeypatch):
    module = sys.modules["exporters.onnx.verification"]  # the package's own name is the function
    original, read = module.read_model, []

    def remember(folder):
        read.append(original(folder))
        return read[-1]

    monkeypatch.setattr(module, "read_model", remember)
    assert not any(exporter.verify(copy, Checkpoint.open(fused_checkpoint)).values())
    external = [v.const_value for v in read[0].graph.initializers.values()]
    external = [tensor for tensor in external if isinstance(tensor, ir.ExternalTensor)]
    assert len(external) > 20
    assert all(tensor.raw is None for tensor in external)


@pytest.mark.parametrize("level", [0, 1, 4])
def test_the_accuracy_level_is_always_written(level, make_fused, tiny_model):
    """Left out, ONNX Runtime takes 4, so 0 would mean the opposite of what it says."""
    plan = exporter.plan(
        Checkpoint.open(make_fused("q4_0")), exporter.Options(accuracy_level=level)
    )
    decoder = genai_config(plan, hub.load_config(str(tiny_model)))["model"]["decoder"]
    assert decoder["session_options"]["session.qdq_matmulnbits_accuracy_level"] == str(level)


@pytest.mark.slow
def test_a_killed_export_leaves_the_old_folder_and_the_next_one_cleans_up(copy, make_fused):
    """SIGKILL while the staged folder is there."""
    code = """
import sys, time
from exporters import onnx
from exporters.onnx import writer
from lrqat.checkpoint.reader import Checkpoint
writer.write_companions = lambda *arguments: time.sleep(60)
onnx.write(onnx.plan(Checkpoint.open(sys.argv[1])), sys.argv[2], overwrite=True)
"""
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    process = subprocess.Popen([sys.executable, "-c", code, str(make_fused("q8_0")), str(copy)])
    deadline = time.monotonic() + 120
    while not list(copy.parent.glob(".copy.*/model.onnx")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert before == {p.name: p.read_bytes() for p in copy.iterdir()}
    write_onnx(exporter.plan(Checkpoint.open(make_fused("q8_0"))), copy, overwrite=True)
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]
