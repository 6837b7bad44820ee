"""Activations and caches that were rounded in training, in ONNX Runtime."""

import collections
import shutil

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from exporters import onnx as exporter
from exporters.onnx.activations import ARITHMETIC, KERNEL, QDQ, Rounding
from exporters.onnx.passes.simplify import simplify
from exporters.onnx.tracing.operators import TRANSLATION
from exporters.onnx.tracing.stand_ins import RoundedInput
from lrqat.activations.grids import quantize, range_of
from lrqat.activations.table import ACTIVATION_GRIDS
from lrqat.checkpoint.reader import Checkpoint
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.layer_sources import Case, source_of
from lrqat.runtimes.layer_trace import FLOAT32_BOUND, compare_states
from lrqat.runtimes.onnx_runtime.roundings import (
    differing_roundings,
    unrounded,
    without_rounding,
)
from lrqat.runtimes.onnx_runtime.session import OnnxRuntime
from tests.support.fake_quantized import make_rounded

CACHE = ["present.0.key", "present.0.value"]
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


# One of every kind; each grid has its turn alone, where every rounding is traced.
KINDS = [
    *("int8-token", "int8-tensor", "q8_0", "int16-tensor", "q8_k", "int4-token", "ort-level4-g64"),
]


@pytest.fixture(scope="module")
def mixed(tiny_model, tmp_path_factory):
    """Every kind of rounding in one layer, and a 4-bit cache: checkpoint and folder."""
    folder = tmp_path_factory.mktemp("mixed")
    checkpoint = make_rounded(tiny_model, folder / "fused", activations=KINDS, kv_bits=4)
    assert set(checkpoint.manifest["activations"]["modules"].values()) == set(KINDS)
    return checkpoint, export(checkpoint, folder / "onnx")


def test_logits_are_pytorchs(mixed):
    """Typically: a sum on the other side of a rounding boundary moves a prompt by a step.

    Those of 16 bits are so fine that it often is.
    """
    checkpoint, folder = mixed
    assert np.median(differences(folder, checkpoint)) < 1e-4


def test_the_products_are_quantised_and_the_file_verifies(mixed, tmp_path):
    checkpoint, folder = mixed
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    assert operators(folder, tmp_path)["MatMulNBits"] == 7
    counts = exporter.verify(folder, checkpoint)
    assert not any(counts.values())
    assert sum(name.endswith((".input.scale", ".input.zero_point")) for name in counts) == 4


def test_integers_of_every_layer_and_of_the_cache_are_pytorchs_on_the_same_inputs(mixed):
    """What the graph rounds, rounded by PyTorch: the same bits."""
    checkpoint, folder = mixed
    found = differing_roundings(folder, checkpoint, PROMPTS[0])
    assert found == dict.fromkeys([*checkpoint.quantized_names, *CACHE], 0)


def test_a_graph_that_rounds_otherwise_is_noticed(mixed, tmp_path):
    checkpoint, folder = mixed
    model = ir.load(folder / "model.onnx")
    last = next(node for node in reversed(model.graph) if node.op_type == "Round")
    last.op_type = "Ceil"
    shutil.copy(folder / "model.onnx_data", tmp_path)
    (tmp_path / "model.onnx").write_bytes(ir.to_proto(model).SerializeToString())
    found = differing_roundings(tmp_path, checkpoint, PROMPTS[0])
    assert [name for name, count in found.items() if count] == ["model.layers.0.mlp.down_proj"]


def test_layers_are_traced_without_the_roundings(mixed):
    checkpoint, folder = mixed
    model = load_reference(checkpoint)
    for float32 in (True, False):
        states = source_of(folder).run(Case(folder, checkpoint, model, PROMPTS[0], float32, None))
        found = compare_states(states.reference, states.runtime)
        assert [d.place for d in found] == ["embedding", "layer 0", "final norm"]
        assert states.computes_in == ("float32" if float32 else None)
        assert (max(d.relative for d in found) < FLOAT32_BOUND / 4) or not float32


def test_without_its_roundings_the_graph_is_pytorchs_without_them(mixed):
    checkpoint, folder = mixed
    model = load_reference(checkpoint)
    reference = torch_logits(model)
    rounded = reference(PROMPTS[0])
    with unrounded(folder, checkpoint) as twin, without_rounding(model):
        plain = reference(PROMPTS[0])
        assert np.abs(twin.logits(PROMPTS[0]) - plain).max() < 1e-5
    assert np.abs(plain - rounded).max() > 1e-3
    assert np.array_equal(reference(PROMPTS[0]), rounded), "it rounds again"


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
    grid = ACTIVATION_GRIDS["int4-token"]
    for part, raw in (("key", past.layers[0].keys), ("value", past.layers[0].values)):
        packed, scale, zero = (whole[f"present.0.{part}{s}"] for s in ("", "_scale", "_zero_point"))
        assert packed.dtype == zero.dtype == np.uint8
        assert packed.shape == (1, 2, len(tokens), 32)  # two a byte
        assert scale.shape == zero.shape == (1, 2, len(tokens), 1)
        q = np.concatenate([packed & 15, packed >> 4], axis=-1)
        values = (q.astype(np.float32) - zero) * scale
        # The reference keeps what it has not rounded yet, and its float32 sums are its own.
        expected = quantize(raw, grid).detach().numpy()
        assert np.mean(np.abs(values - expected) > 1e-5) < 0.01
    assert not (folder / "genai_config.json").exists()


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


def test_the_kernels_own_rounding_needs_nothing_in_the_graph(onnx_folder, make_fused):
    """The plan is that of a model without rounding, at level 4; so its folder serves."""
    checkpoint = Checkpoint.open(make_fused("int4-g128"))
    plain = exporter.plan(checkpoint)
    modules = dict.fromkeys(checkpoint.quantized_names, "ort-level4-g128")
    checkpoint.manifest["activations"] = {"modules": modules}
    plan = exporter.plan(checkpoint)
    assert plan.tensors == plain.tensors
    assert {rounding.form for rounding in plan.roundings.values()} == {KERNEL}
    assert plan.options == plain.options.with_level(4)
    folder = onnx_folder("int4-g128")
    assert np.median(differences(folder, checkpoint, level=4)) < 1e-5
    assert np.median(differences(folder, checkpoint, level=1)) > 1e-4
