"""The file of every preset in every runtime of this machine.

ONNX Runtime, OpenVINO, GenAI, and an emulator of Qualcomm's NPU. One small model has it all:
integers of 2, 3, 4 and 8 bits, in blocks and by rows, with and without zero-points; inputs rounded
by token and with fixed ranges of 8 and 16 bits; a cache of 8 bits. (What is rounded by ranges that
are computed, `qnn` does not take.) The table in docs/onnx-grids.md says what was run, row by row as
here; WebGPU and transformers.js are in test_transformers_js.py.
"""

import collections
import dataclasses
import functools
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from tokenizers import Tokenizer

from exporters import onnx as exporter
from exporters.onnx.presets import PRESETS
from lrqat.errors import UserError
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.genai import continue_tokens
from lrqat.runtimes.onnx_runtime.roundings import (
    differing_roundings,
    unrounded,
    unrounded_graph,
    without_rounding,
)
from lrqat.runtimes.onnx_runtime.session import OnnxRuntime
from lrqat.runtimes.openvino import OpenVino
from lrqat.runtimes.qnn import Qnn
from tests.support.fake_quantized import make_rounded

GRIDS = {
    "k_proj": "int2-g32", "v_proj": "int4-asym-g32", "o_proj": "int8-asym-channel",
    "gate_proj": "int8-channel", "up_proj": "int3-asym-channel", "down_proj": "int4-channel",
}  # fmt: skip
# q, k, v, o, gate, up, down
INPUTS = ["int8-token", None, None, "int8-tensor", "int8-tensor", None, "int16-tensor"]
FIXED = [None if name == "int8-token" else name for name in INPUTS]
UP_TO_4_BITS = {"k_proj": "int2-g64", "v_proj": "int4-asym-g32", "down_proj": "int3-channel"}
# Of the largest logit: without any rounding; and with, where a sum that falls on the other side of
# a boundary takes a step.
BOUNDS = {"float32": (1e-5, 1e-3), "float16": (5e-3, 5e-2)}
NPU = (1e-2, 1e-1)  # twice as much, in what its emulator makes of half precision
PROMPTS = np.random.default_rng(0).integers(1, 512, (20, 9))


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tmp_path_factory):
    """Function preset -> the checkpoint with all that it takes."""

    @functools.cache
    def make(computed):
        folder = tmp_path_factory.mktemp("all") / "fused"
        rounded = {"activations": INPUTS, "kv_bits": 8} if computed else {"activations": FIXED}
        return make_rounded(tiny_model, folder, grid_for=GRIDS, **rounded)

    return lambda preset: make(PRESETS[preset].computes_ranges)


@pytest.fixture(scope="module")
def model(checkpoint):
    """Function preset -> its reference."""
    loaded = functools.cache(load_reference)
    return lambda preset: loaded(checkpoint(preset))


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    """Function preset -> its ONNX folder; the cache as GenAI takes it."""

    @functools.cache
    def make(preset):
        path = tmp_path_factory.mktemp(preset) / "onnx"
        options = exporter.Options(preset=preset, kv_cache="float")
        exporter.write(exporter.plan(checkpoint(preset), options), path)
        return path

    return make


def bounds(preset):
    return BOUNDS[PRESETS[preset].float_type[0]]


def difference(logits, expected):
    """The largest, relative to the largest logit."""
    assert np.abs(expected).max() > 0.5
    return np.abs(logits.astype(np.float32) - expected).max() / np.abs(expected).max()


def typical(run, model):
    """The median over prompts: a sum on the other side of a boundary moves a prompt by a step."""
    reference = torch_logits(model)
    return np.median([difference(run(prompt), reference(prompt)) for prompt in PROMPTS])


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_onnx_runtime(preset, folder, checkpoint, model):
    path, checkpoint, model = folder(preset), checkpoint(preset), model(preset)
    assert not any(exporter.verify(path, checkpoint).values())
    onnx.checker.check_model(str(path / "model.onnx"), full_check=True)
    if PRESETS[preset].float_type[0] == "float32":  # a CPU computes float16's operators in float32
        rounded = [n for n, grid in zip(checkpoint.quantized_names, INPUTS, strict=True) if grid]
        found = differing_roundings(path, checkpoint, PROMPTS[0])
        assert found == dict.fromkeys([*rounded, "present.0.key", "present.0.value"], 0)
    exact, stepped = bounds(preset)
    with unrounded(path, checkpoint) as twin, without_rounding(model):
        expected = torch_logits(model)(PROMPTS[0])
        assert difference(twin.logits(PROMPTS[0]), expected) < exact
    with OnnxRuntime.open(path) as session:
        assert typical(session.logits, model) < stepped


@pytest.mark.slow
@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "cpu"])
def test_openvino(preset, folder, checkpoint, model, tmp_path):
    pytest.importorskip("openvino")
    checkpoint, model = checkpoint(preset), model(preset)
    exact, stepped = bounds(preset)
    (tmp_path / "model.onnx").write_bytes(unrounded_graph(folder(preset), checkpoint))
    shutil.copy(folder(preset) / "model.onnx_data", tmp_path)
    with without_rounding(model):
        expected = torch_logits(model)(PROMPTS[0])
        assert difference(OpenVino.open(tmp_path).logits(PROMPTS[0]), expected) < exact
    assert typical(OpenVino.open(folder(preset)).logits, model) < stepped


@pytest.mark.slow
def test_openvino_has_no_two_bits(folder):
    pytest.importorskip("openvino")
    with pytest.raises(UserError, match=r"(?s)cannot read.*Unsupported type"):
        OpenVino.open(folder("cpu"))


def test_openvino_still_leaves_out_rounding_to_half_precision(tmp_path):
    """If this fails it has been mended: let `keeps_half_steps` of its preset be true."""
    pytest.importorskip("openvino")
    kinds, value = onnx.TensorProto, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Cast", ["x"], ["half"], to=kinds.FLOAT16),
            onnx.helper.make_node("Cast", ["half"], ["y"], to=kinds.FLOAT),
        ],
        "g",
        [value("x", kinds.FLOAT, [3])],
        [value("y", kinds.FLOAT, [3])],
    )
    opsets = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    x = np.array([0.1, 1 / 3, 0.7], np.float32)
    found = OpenVino.open(tmp_path).run({"x": x})["y"]
    assert np.array_equal(found, x)
    assert not np.array_equal(x.astype(np.float16).astype(np.float32), x)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_genai(preset, folder, model):
    prompt, model = PROMPTS[0].tolist(), model(preset)
    greedy = model.generate(
        torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    assert continue_tokens(folder(preset), prompt, 12) == greedy[0, len(prompt) :].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "opset", "integers", "quantizers"),
    [
        ("cpu", 25, {"INT2", "INT4", "INT8"}, 1),
        ("qnn", 23, {"UINT4", "UINT8"}, 3),
        ("webgpu", 23, {"UINT4", "UINT8"}, 0),
    ],
)
def test_what_the_file_has_for_its_runtime(preset, opset, integers, quantizers, folder, tmp_path):
    """cpu: integers are multiplied where that is fast. qnn: every fixed range is a node."""
    loaded = ir.load(folder(preset) / "model.onnx")
    assert loaded.opset_imports[""] == opset
    held = {v.dtype.name for n, v in loaded.graph.initializers.items() if n.endswith("proj.weight")}
    assert held == integers
    assert sum(node.op_type == "QuantizeLinear" for node in loaded.graph) == quantizers
    with OnnxRuntime.open(folder(preset), optimized_path=tmp_path / "optimised.onnx"):
        nodes = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph.node
    found = collections.Counter(node.op_type for node in nodes)
    if preset == "cpu":
        assert found["MatMulIntegerToFloat"] == 1


@pytest.mark.slow
def test_qnn(folder, checkpoint, model, tmp_path):
    """Every node is the NPU's, but for weights of 8 bits."""
    pytest.importorskip("onnxruntime_qnn")
    path, checkpoint, model = folder("qnn"), checkpoint("qnn"), model("qnn")
    exact, stepped = NPU
    npu = Qnn.open(path, len(PROMPTS[0]))
    assert npu.graphs == 1
    assert npu.nodes["CPUExecutionProvider"] == {"DequantizeLinear": 2}
    assert typical(npu.logits, model) < stepped
    (tmp_path / "model.onnx").write_bytes(unrounded_graph(path, checkpoint))
    shutil.copy(path / "model.onnx_data", tmp_path)
    with without_rounding(model):
        unrounded = Qnn.open(tmp_path, len(PROMPTS[0]))
        assert typical(unrounded.logits, model) < exact


@pytest.fixture(scope="module")
def up_to_4_bits(tiny_model, tmp_path_factory):
    """Weights of up to 4 bits, no inputs rounded: the reference, and the folder for qnn."""
    path = tmp_path_factory.mktemp("narrow")
    checkpoint = make_rounded(tiny_model, path / "fused", grid_for=UP_TO_4_BITS)
    exporter.write(exporter.plan(checkpoint, exporter.Options(preset="qnn")), path / "onnx")
    return load_reference(checkpoint), path / "onnx"


@pytest.mark.slow
def test_weights_of_up_to_4_bits_are_all_on_the_npu(up_to_4_bits):
    pytest.importorskip("onnxruntime_qnn")
    model, path = up_to_4_bits
    npu = Qnn.open(path, len(PROMPTS[0]))
    assert npu.graphs == 1
    assert set(npu.nodes) == {"QNNExecutionProvider"}
    assert npu.nodes["QNNExecutionProvider"]["MatMulNBits"] == 7
    assert typical(npu.logits, model) < NPU[0]


@pytest.mark.slow
def test_the_program_of_the_readme_for_qnn(up_to_4_bits):
    pytest.importorskip("onnxruntime_qnn")
    model, path = up_to_4_bits
    programs = re.findall(r"```python\n(.*?)```", (path / "README.md").read_text(), re.DOTALL)
    program = next(text for text in programs if "onnxruntime_qnn" in text)
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=path, capture_output=True, text=True, check=True
    )
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    logits = torch_logits(model)(np.array(tokenizer.encode("Once upon a time").ids))
    # Qualcomm's library says something of its own, before the token or after it.
    assert tokenizer.decode([int(logits[-1].argmax())]) in ran.stdout.splitlines()


@pytest.mark.slow
def test_qnn_still_fails_on_ranges_that_are_computed(tiny_model, tmp_path, monkeypatch):
    """If this fails it has been mended: let `computes_ranges` of its preset be true."""
    pytest.importorskip("onnxruntime_qnn")
    checkpoint = make_rounded(tiny_model, tmp_path / "fused", activations=["int8-token"])
    changed = dataclasses.replace(PRESETS["qnn"], computes_ranges=True)
    monkeypatch.setitem(PRESETS, "qnn", changed)
    options = exporter.Options(preset="qnn", kv_cache="float")
    exporter.write(exporter.plan(checkpoint, options), tmp_path / "onnx")
    with pytest.raises(UserError, match="QNN cannot compile"):
        Qnn.open(tmp_path / "onnx", 9)
