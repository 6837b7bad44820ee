"""Embeddings and heads of every form, in ONNX Runtime and OpenVINO: lookups, products, fusion."""

import collections

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from exporters import onnx as exporter
from exporters.embedding_and_head import find_embedding_and_head
from exporters.onnx.weights.integers import round_rows
from lrqat.checkpoint.reader import Checkpoint
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.genai import continue_tokens
from lrqat.runtimes.onnx_runtime.session import OnnxRuntime
from lrqat.runtimes.openvino import OpenVino
from tests.support.checkpoints import fused
from tests.support.zoo import SIZES

TOKENS = np.random.default_rng(0).integers(1, SIZES["vocab_size"], 40)
INT8 = {"embedding_type": "int8"}
# name -> architecture, grids of embedding and head, type of what is unquantized, options
CASES = {
    "2 bits, and a head": (
        "llama, llama3 rope",
        {"embed_tokens": "int2-asym-channel", "lm_head": "int4-g64"},
        "float32",
        {},
    ),
    "tied, 4 bits": ("qwen3", {"embed_tokens": "int4-asym-g32"}, "float32", {}),
    "tied, 2 bits, scaled": (
        "gemma3",
        {"embed_tokens": "int2-asym-channel"},
        "float32",
        {"opset": 21},
    ),
    "tied, 8 bits": ("gpt2", {"wte": "int8-channel"}, "float32", {}),
    "bfloat16": ("llama, llama3 rope", {}, "bfloat16", {"preset": "openvino"}),
    "bfloat16, tied, scaled": ("gemma2, low caps", {}, "bfloat16", {}),
    "rounded": ("llama, llama3 rope", {}, "bfloat16", INT8 | {"head_type": "int8"}),
    "rounded, tied, scaled": ("gemma3", {}, "float32", INT8),
}
FAST = ("tied, 4 bits", "bfloat16")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Function name -> checkpoint, the reference in PyTorch, the ONNX folder."""
    found = {}

    def make(name):
        if name not in found:
            folder = tmp_path_factory.mktemp("tables")
            kind, grids, dtype, options = CASES[name]
            checkpoint = fused(kind, folder / "f", grid_for=grids, keep=(), dtype=dtype)
            plan = exporter.plan(checkpoint, exporter.Options(**options))
            exporter.write(plan, folder / "onnx")
            model = load_reference(checkpoint)
            for choice in plan.choices:
                if choice.type == "int8":
                    values = round_rows("x", checkpoint.floating(f"{choice.module}.weight"))
                    weight = model.get_submodule(choice.module).weight
                    weight.data = torch.from_numpy(values.dequantize())
            if not plan.embedding_and_head.head:
                model.tie_weights()
            found[name] = checkpoint, model, folder / "onnx"
        return found[name]

    return make


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_tables_compute_what_the_reference_does_and_heads_are_fused(name, made, tmp_path):
    checkpoint, model, folder = made(name)
    assert not any(exporter.verify(folder, checkpoint).values())
    expected = torch_logits(model)(TOKENS)
    bound = 1e-5 * np.abs(expected).max()
    with OnnxRuntime.open(folder, optimized_path=tmp_path / "optimised.onnx") as session:
        assert np.abs(session.logits(TOKENS) - expected).max() < bound
    assert np.abs(OpenVino.open(folder).logits(TOKENS) - expected).max() < bound
    graph = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph
    found = collections.Counter(node.op_type for node in graph.node)
    # Every projection is one product, and so is a head of up to 4 bits; one of 8 bits is a float
    # when the model is loaded, and nothing is dequantised apart.
    names, both = checkpoint.quantized_names, find_embedding_and_head(checkpoint)
    head = both.of_logits
    layers = sum(".layers." in name or ".h." in name for name in names)
    loaded = exporter.plan(checkpoint, exporter.Options(**CASES[name][3])).loads_head
    integers = head in names and not loaded
    assert loaded == (name in ("tied, 8 bits", "rounded", "rounded, tied, scaled"))
    if loaded:
        products = {node.input[1] for node in graph.node if "MatMul" in node.op_type}
        floats = [t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
        assert products.intersection(floats), "it is computed once, when it is loaded"
    assert [found["MatMulNBits"], found["DequantizeLinear"]] == [layers + integers, 0]
    shared = [t for t in graph.initializer if t.name == f"{both.embedding}.weight"]
    assert shared, "rows are looked up in the table of the file"


@pytest.mark.parametrize("name", ["2 bits, and a head", "tied, 4 bits"])
def test_onnx_runtimes_own_arithmetic_gives_every_row_and_the_head_bit_for_bit(name, made):
    """The same operators without any optimisation: what is looked up, and what is multiplied."""
    checkpoint, _, folder = made(name)
    both = find_embedding_and_head(checkpoint)
    model = onnx.load(folder / "model.onnx")
    norm = next(node for node in model.graph.node if node.op_type == "RMSNormalization")
    last = [node for node in model.graph.node if node.op_type == "DequantizeLinear"][-1]
    outputs = [norm.input[0], last.output[0]]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(o, onnx.TensorProto.FLOAT, None) for o in outputs
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    ids = np.arange(SIZES["vocab_size"])[None]
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": ids % 128}
    wrapped = OnnxRuntime(session)
    rows, matrix = session.run(outputs, feeds | wrapped.empty_cache(1))
    assert np.array_equal(rows[0], checkpoint.quantized(both.embedding).dequantize())
    head = checkpoint.quantized(both.of_logits).dequantize()
    assert np.array_equal(matrix.T, head)


def test_genai_generates_the_tokens_that_pytorch_does_with_a_tied_table_of_integers(made):
    _, model, folder = made("tied, 4 bits")
    prompt = TOKENS[:20].tolist()
    greedy = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)
    greedy = [token for token in greedy[0, len(prompt) :].tolist() if token]
    assert continue_tokens(folder, prompt, 16) == greedy


@pytest.mark.slow
def test_half_precision_has_the_same_tables(make_small, tmp_path):
    checkpoint = make_small("q4_0", {"embed_tokens": "q4_0"}, tied=True)
    exporter.write(exporter.plan(checkpoint, exporter.Options(preset="gpu")), tmp_path / "onnx")
    assert not any(exporter.verify(tmp_path / "onnx", Checkpoint.open(checkpoint.path)).values())
    expected = torch_logits(load_reference(checkpoint))(TOKENS)
    with OnnxRuntime.open(tmp_path / "onnx") as session:
        logits = session.logits(TOKENS).astype(np.float32)
    assert np.abs(logits - expected).max() < 5e-3 * np.abs(expected).max()
