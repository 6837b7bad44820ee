"""The compact form is inspected, evaluated and proved as what it is."""

import contextlib
import json
import shutil

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporters import onnx_genai
from exporters.inspection import inspect, mismatches
from lrqat.checkpoint.reader import Checkpoint
from lrqat.cli import inspect as inspection
from lrqat.cli import parity
from lrqat.errors import UserError
from lrqat.runtimes.parity import prove
from lrqat.runtimes.targets import continuation, evaluate

DOWN = "model.layers.1.mlp.down_proj"
FUZZ = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def compact(fused_checkpoint, tmp_path_factory):
    """The compact form of the tiny checkpoint; not to be changed."""
    pytest.importorskip("onnxruntime_genai")
    folder = tmp_path_factory.mktemp("compact") / "onnx-genai"
    onnx_genai.write(onnx_genai.plan(Checkpoint.open(fused_checkpoint)), folder)
    return folder


@pytest.fixture
def spoilt(compact, tmp_path):
    """Function of a change of the graph -> a copy of the folder with it."""

    def spoil(change):
        folder = shutil.copytree(compact, tmp_path / "spoilt")
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        change(model.graph)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        return folder

    return spoil


def product(graph, name):
    """The quantized product that has a part of the name."""
    nodes = (node for node in graph.node if node.op_type == "MatMulNBits")
    return next(node for node in nodes if name in node.input[1])


def test_it_is_described_by_its_products(compact, fused_checkpoint):
    found = inspect(compact)
    assert found.kind == "ONNX, compact form"
    trained = found.types["INT4, blocks of 32"]
    # q, k and v are one product. 4 bits, 32 of a scale and 4 of a zero-point for 32 weights.
    assert (trained.tensors, trained.weights) == (10, 2 * 147_456)
    assert 8 * trained.bytes == trained.weights * (4 + 36 / 32)
    assert found.hyperparameters["type"] == "llama"
    assert found.provenance["lrqat.grid"] == "q4_0"
    assert mismatches(compact, Checkpoint.open(fused_checkpoint)) == {}


def test_inspect_calls_it_exact(compact, fused_checkpoint, capsys):
    assert inspection.main([str(compact), "--checkpoint", str(fused_checkpoint)]) == 0
    assert "exact: 16 tensors compared with" in capsys.readouterr().out


def test_it_is_evaluated_and_proved(compact, fused_checkpoint, text):
    target, found = evaluate(str(compact), text[:20_000], context=64, limit=4)
    assert target.runtime == "ONNX Runtime"
    arguments = {"context": 64, "limit": 4, "accuracy_levels": [1, 4]}
    (proof,) = prove(fused_checkpoint, [str(compact)], text[:20_000], **arguments)
    assert proof.passed, proof.to_json()
    assert proof.tensors == 16
    assert proof.comparison.target.perplexity == found.perplexity
    assert proof.at_levels[1].kl < 1e-9
    assert proof.at_levels[4].kl > 1e-7, "level 4 rounds activations"
    assert continuation(str(compact), "def main(", 4, context=64)


def test_a_file_that_rounds_activations_fails_l2_alone(fused_checkpoint, text, tmp_path):
    """Level 4 is the user's choice and is not exact; weights and graph are right all the same."""
    options = onnx_genai.Options(matmul_accuracy_level=4)
    folder = tmp_path / "level4"
    onnx_genai.write(onnx_genai.plan(Checkpoint.open(fused_checkpoint), options), folder)
    (proof,) = prove(fused_checkpoint, [str(folder)], text[:20_000], context=64, limit=2)
    assert proof.verdicts == {"L0": True, "L1": True, "L2": False}


def swap_scales(graph):
    """Integers under another weight's scales: every byte is right."""
    gate, up = product(graph, "1.mlp.gate_proj"), product(graph, "1.mlp.up_proj")
    gate.input[2], up.input[2] = up.input[2], gate.input[2]


def turn_backwards(graph):
    """Rotary angles of the other sign."""
    cache = next(tensor for tensor in graph.initializer if tensor.name == "sin_cache")
    for node in graph.node:
        if node.op_type == "GroupQueryAttention":
            at = list(node.input).index(cache.name)
            node.input[at] = "cos_cache"
            node.input[at - 1] = cache.name


@pytest.mark.parametrize(
    ("change", "verdicts", "wrong"),
    [
        (swap_scales, {"L0": False, "L1": False, "L2": False}, {"gate_proj", "up_proj"}),
        (turn_backwards, {"L0": True, "L1": False, "L2": False}, set()),
    ],
)
def test_a_wrong_graph_fails(change, verdicts, wrong, spoilt, fused_checkpoint, text):
    (proof,) = prove(fused_checkpoint, [str(spoilt(change))], text[:20_000], context=64, limit=2)
    assert proof.verdicts == verdicts
    assert {name.rpartition(".")[2] for name in proof.mismatches} == wrong


def test_parity_names_the_tensors_that_differ(compact, spoilt, fused_checkpoint, text_file, capsys):
    """Twelve integers of one weight altered, in a file that is otherwise right."""
    folder = spoilt(lambda graph: None)
    model = onnx.load(compact / "model.onnx", load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == f"{DOWN}.MatMulNBits.qweight")
    place = {entry.key: entry.value for entry in tensor.external_data}
    data = folder / place["location"]
    content, offset = bytearray(data.read_bytes()), int(place["offset"])
    for i in range(offset, offset + 6):  # two integers each
        content[i] ^= 0x11
    data.write_bytes(content)
    arguments = [str(fused_checkpoint), str(folder), "--data", str(text_file)]
    arguments += ["--context", "64", "--windows", "2"]
    assert parity.main(arguments) == 1
    shown = capsys.readouterr().out
    assert "12 weights in 1 of 16" in shown  # the cell may break before "tensors"
    assert f"{folder}: L0: {DOWN}: 12 weights" in shown
    assert parity.main([*arguments, "--json"]) == 1
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert file["l0"] == {"tensors": 16, "mismatches": 12, "by_tensor": {DOWN: 12}}
    assert inspection.main([str(folder), "--checkpoint", str(fused_checkpoint)]) == 1
    shown = capsys.readouterr().out
    assert "NOT exact: 12 weights in 1 of 16 tensors" in shown
    assert f"{DOWN}: 12 weights" in shown


def without_zero_points(graph):
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            node.input[3] = ""


def without_scales(graph):
    product(graph, DOWN).input[2] = ""


def reordered(graph):
    product(graph, DOWN).input.append(product(graph, DOWN).input[3])


def other_blocks(graph):
    node = product(graph, DOWN)
    next(entry for entry in node.attribute if entry.name == "block_size").i = 0


def scales_of_another_type(graph):
    name = product(graph, DOWN).input[2]
    tensor = next(t for t in graph.initializer if t.name == name)
    tensor.data_type = onnx.TensorProto.INT32


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (without_zero_points, set()),  # then they are what q4_0 has
        (without_scales, {DOWN}),
        (reordered, {DOWN}),
        (other_blocks, {DOWN}),
        (scales_of_another_type, {DOWN}),
    ],
)
def test_what_is_not_multiplied_as_planned_differs_whole(change, wrong, spoilt, fused_checkpoint):
    found = mismatches(spoilt(change), Checkpoint.open(fused_checkpoint))
    assert found == dict.fromkeys(wrong, 128 * 256)


@FUZZ
@given(data=st.data())
def test_altered_files_give_an_answer_or_a_message(data, compact, fused_checkpoint, tmp_path):
    folder = tmp_path / "altered"
    if not folder.is_dir():
        shutil.copytree(compact, folder)
    content = bytearray((compact / "model.onnx").read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=12))
    (folder / "model.onnx").write_bytes(content)
    for look in (inspect, lambda path: mismatches(path, Checkpoint.open(fused_checkpoint))):
        with contextlib.suppress(UserError):
            look(folder)
