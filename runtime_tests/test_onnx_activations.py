"""Activations and caches that were rounded in training, in ONNX Runtime."""

import collections
import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from made_rounded import make_rounded
from torch import nn

from exporters import onnx as exporter
from exporters.onnx.activations import ARITHMETIC, QDQ, Rounding
from exporters.onnx.operators import TRANSLATION
from exporters.onnx.passes.simplify import simplify
from exporters.onnx.rounding import RoundedInput
from lrqat import hub
from lrqat.activations import ACTIVATION_GRIDS, find_activation_grid, quantize, range_of
from lrqat.reference import load_reference, torch_logits
from runtime_tests.genai import generate_tokens
from runtime_tests.onnx_runtime import OnnxRuntime

PROMPTS = np.random.default_rng(0).integers(0, 512, (20, 9))


def export(checkpoint, folder, **options):
    plan = exporter.plan(checkpoint, exporter.Options(**options))
    exporter.write(plan, folder)
    return folder


def differences(folder, checkpoint, level=1):
    """max |d logit| of every prompt, between ONNX Runtime and the reference."""
    reference = torch_logits(load_reference(checkpoint))
    with OnnxRuntime.open(folder, accuracy_level=level) as session:
        return [np.abs(session.logits(p) - reference(p)).max() for p in PROMPTS]


def operators(folder, tmp_path):
    """Operators of the graph that ONNX Runtime makes of it."""
    with OnnxRuntime.open(folder, optimized_path=tmp_path / "optimised.onnx"):
        pass
    nodes = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph.node
    return collections.Counter(node.op_type for node in nodes)


@pytest.fixture(scope="module")
def mixed(tiny_model, tmp_path_factory):
    """Every activation grid somewhere, and an 8-bit cache: checkpoint and folder."""
    folder = tmp_path_factory.mktemp("mixed")
    names = list(ACTIVATION_GRIDS)
    checkpoint = make_rounded(tiny_model, folder / "fused", activations=names, kv_bits=8, layers=2)
    used = set(checkpoint.manifest["activations"]["modules"].values())
    assert used == set(names)
    return checkpoint, export(checkpoint, folder / "onnx")


def test_logits_are_pytorchs(mixed):
    """Typically: a sum on the other side of a rounding boundary moves a prompt by a step."""
    checkpoint, folder = mixed
    found = differences(folder, checkpoint)
    assert np.median(found) < 1e-5


def test_the_products_are_quantised_and_the_file_verifies(mixed, tmp_path):
    checkpoint, folder = mixed
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    assert operators(folder, tmp_path)["MatMulNBits"] == 14
    counts = exporter.verify(folder, checkpoint)
    assert not any(counts.values())
    assert sum(name.endswith((".input.scale", ".input.zero_point")) for name in counts) == 6


def test_integers_of_every_layer_are_pytorchs_on_the_same_inputs(mixed):
    """The graph's own inputs of the layers, rounded by PyTorch: the same bits."""
    checkpoint, folder = mixed
    model = onnx.load(folder / "model.onnx")
    makers = {out: node for node in model.graph.node for out in node.output}
    graph = ir.load(folder / "model.onnx").graph
    raw, rounded = {}, {}
    for name in checkpoint.quantized_names:
        dequantized = graph.initializers[f"{name}.weight"].consumers()[0].outputs[0]
        (product,) = dequantized.consumers()
        rounded[name] = product.inputs[0].name
        raw[name] = norm_before(makers, rounded[name])
    found = {name: value for name, value in raw.items() if value}
    assert len(found) == 10  # q, k, v, gate and up
    wanted = sorted({*found.values(), *rounded.values()})
    values = dict(zip(wanted, run(folder, model, wanted), strict=True))
    tensors = {n: torch.from_numpy(checkpoint.floating(n)) for n in checkpoint.activation_names}
    for name, value in found.items():
        grid = find_activation_grid(checkpoint.manifest["activations"]["modules"][name])
        x = torch.from_numpy(values[value])
        ranges = None
        if grid.static:
            parts = (tensors[f"{name}.input_{part}"] for part in ("scale", "zero_point"))
            ranges = range_of(torch.zeros(()), torch.ones(()), grid)._make(parts)
        assert np.array_equal(quantize(x, grid, ranges).numpy(), values[rounded[name]]), name


def norm_before(makers, name):
    """The normalisation that a value comes from through roundings alone, or None."""
    for _ in range(60):
        node = makers.get(name)
        if node is None or node.op_type in ("Attention", "MatMul", "Sigmoid"):
            return None
        if node.op_type == "RMSNormalization":
            return name
        # The first input that is computed, of a node with several.
        name = next((i for i in node.input if i in makers), None)
    return None


def run(folder, model, names):
    """Values of the graph on a prompt, at full optimisation."""
    present = {output.name for output in model.graph.output}
    for name in names:
        if name not in present:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(names, feeds(PROMPTS[0]) | OnnxRuntime(session).empty_cache(1))


def feeds(tokens, start=0):
    stop = start + len(tokens)
    return {
        "input_ids": tokens[None],
        "attention_mask": np.ones((1, stop), np.int64),
        "position_ids": np.arange(start, stop)[None],
    }


class Several(nn.Module):
    """Rounds the same input in every way."""

    def __init__(self, roundings):
        super().__init__()
        self.several = nn.ModuleList(roundings)

    def forward(self, x):
        return [rounding(x) for rounding in self.several]


def test_every_rounding_gives_the_same_bits_once_traced(tmp_path):
    """Each grid, in both forms where it has a fixed range, on rows of all sizes."""
    grids, modules = [], []
    low, high = torch.tensor(-3.0), torch.tensor(5.0)
    for grid in ACTIVATION_GRIDS.values():
        for form in (ARITHMETIC, QDQ) if grid.static else (ARITHMETIC,):
            ranges = range_of(low, high, grid) if grid.static else (None, None)
            grids.append((grid, form))
            modules.append(RoundedInput(Rounding(grid, form), *ranges))
    program = torch.onnx.export(
        Several(modules).eval(), (torch.zeros(3, 256),), dynamo=True, verbose=False,
        optimize=False, opset_version=21, custom_translation_table=TRANSLATION,
        dynamic_shapes={"x": {0: "rows"}},
    )  # fmt: skip
    model = program.model
    simplify(model, [])
    for bits in (4, 8, 16):  # what planning does: QuantizeLinear takes its type from them
        grid = ACTIVATION_GRIDS[f"int{bits}-tensor"]
        array = range_of(low, high, grid).zero_point.numpy()
        dtype = ir.DataType[f"UINT{bits}"]
        value = ir.Value(name=f"z{bits}", const_value=ir.Tensor(array.astype(dtype.numpy())))
        model.graph.register_initializer(value)
        for node in model.graph:
            linear = node.op_type in ("QuantizeLinear", "DequantizeLinear")
            if linear and node.inputs[2].const_value.numpy() == array:
                node.replace_input_with(2, value)
    ir.save(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    rng = np.random.default_rng(1)
    x = rng.standard_normal((500, 256)) * np.exp(rng.uniform(-6, 3, (500, 1)))
    x = x.astype(np.float32)
    x[0], x[1], x[2] = 0, np.abs(x[1]), -np.abs(x[2])
    outputs = session.run(None, {session.get_inputs()[0].name: x})
    for (grid, form), found in zip(grids, outputs, strict=True):
        ranges = range_of(low, high, grid) if grid.static else None
        expected = quantize(torch.from_numpy(x), grid, ranges).numpy()
        assert np.array_equal(found, expected), (grid.name, form)


def test_token_by_token_equals_all_at_once_and_the_cache_holds_pytorchs_integers(mixed):
    """To 1e-3: a step of 16 bits is taken here and there, see the test of the bits themselves."""
    checkpoint, folder = mixed
    tokens = PROMPTS[1]
    rows, whole = step_by_step(folder, tokens)
    assert np.abs(rows - whole["logits"][0]).max() < 1e-3
    model = load_reference(checkpoint)
    past = model(input_ids=torch.from_numpy(tokens)[None], use_cache=True).past_key_values
    grid = ACTIVATION_GRIDS["int8-token"]
    for part, raw in (("key", past.layers[0].keys), ("value", past.layers[0].values)):
        q, scale, zero = (whole[f"present.0.{part}{s}"] for s in ("", "_scale", "_zero_point"))
        assert q.dtype == zero.dtype == np.uint8
        assert q.shape == (1, 2, len(tokens), 64)
        assert scale.shape == zero.shape == (1, 2, len(tokens), 1)
        values = (q.astype(np.float32) - zero) * scale
        # The reference keeps what it has not rounded yet, and its float32 sums are its own.
        expected = quantize(raw, grid).detach().numpy()
        assert np.mean(np.abs(values - expected) > 1e-5) < 0.01


def step_by_step(folder, tokens):
    """Logits token by token, and every output on all tokens at once."""
    with OnnxRuntime.open(folder) as opened:
        names = [output.name for output in opened.session.get_outputs()]
        whole = dict(
            zip(names, opened.session.run(None, feeds(tokens) | opened.empty_cache(1)), strict=True)
        )
        cache, rows = opened.empty_cache(1), []
        for i in range(len(tokens)):
            step = feeds(tokens[i : i + 1], i) | cache
            results = dict(zip(names, opened.session.run(None, step), strict=True))
            rows.append(results.pop("logits")[0])
            cache = {n.replace("present", "past_key_values"): v for n, v in results.items()}
    return np.concatenate(rows), whole


@pytest.mark.slow
def test_fixed_ranges_with_integer_products_and_a_cache_of_four_bits(tiny_model, tmp_path):
    """8-bit weights with a scale a row: the runtime multiplies the integers."""
    checkpoint = make_rounded(
        tiny_model, tmp_path / "f", grid="int8-channel", activations=["int8-tensor"], kv_bits=4
    )
    folder = export(checkpoint, tmp_path / "onnx")
    assert not any(exporter.verify(folder, checkpoint).values())
    assert np.median(differences(folder, checkpoint)) < 1e-5
    rows, whole = step_by_step(folder, PROMPTS[2])
    assert np.abs(rows - whole["logits"][0]).max() < 1e-5
    found = operators(folder, tmp_path)
    assert found["MatMulIntegerToFloat"] == 7
    assert found["QuantizeLinear"] >= 4
    with OnnxRuntime.open(folder) as opened:
        shapes = {i.name: (i.type, i.shape[3]) for i in opened.session.get_inputs()[3:6]}
    assert shapes == {
        "past_key_values.0.key": ("tensor(uint8)", 32),  # two a byte
        "past_key_values.0.key_scale": ("tensor(float)", 1),
        "past_key_values.0.key_zero_point": ("tensor(uint8)", 1),
    }
    assert not (folder / "genai_config.json").exists()


@pytest.mark.slow
def test_sixteen_bits_for_npus_and_a_float_cache_in_genai(tiny_model, tmp_path):
    checkpoint = make_rounded(tiny_model, tmp_path / "f", activations=["int16-tensor"], kv_bits=8)
    folder = export(checkpoint, tmp_path / "onnx", preset="qnn", kv_cache="float")
    model = ir.load(folder / "model.onnx")
    assert model.opset_imports[""] == 21
    points = [v for n, v in model.graph.initializers.items() if n.endswith(".input.zero_point")]
    assert {v.dtype for v in points} == {ir.DataType.UINT16}
    # Steps are so small that float32 sums often differ by more than their distance to a boundary.
    assert np.median(differences(folder, checkpoint)) < 3e-4
    found = operators(folder, tmp_path)
    assert found["MatMulNBits"] == found["QuantizeLinear"] == 7
    prompt, continuation = generate_tokens(folder, "def main(argv):\n    return ", 12)
    greedy = load_reference(checkpoint).generate(
        torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    assert continuation == greedy[0, len(prompt) :].tolist()
    assert hub.load_tokenizer(folder)


def test_the_kernels_own_rounding_needs_nothing_in_the_graph(tiny_model, tmp_path):
    checkpoint = make_rounded(tiny_model, tmp_path / "f", activations=["ort-level4-g32"])
    folder = export(checkpoint, tmp_path / "onnx")
    config = json.loads((folder / "genai_config.json").read_text())
    level = config["model"]["decoder"]["session_options"]["session.qdq_matmulnbits_accuracy_level"]
    assert level == "4"
    nodes = onnx.load(folder / "model.onnx", load_external_data=False).graph.node
    assert not any(node.op_type == "Round" for node in nodes)
    assert np.median(differences(folder, checkpoint, level=4)) < 1e-5
    assert np.median(differences(folder, checkpoint, level=1)) > 1e-4
