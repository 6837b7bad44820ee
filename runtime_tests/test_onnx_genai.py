"""The compact form: onnxruntime-genai's own builder, given the trained integers."""

import json

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import LlamaConfig

from exporters import onnx_genai
from exporters.format import load_format
from exporters.onnx_genai.olive import pack, unpack
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import ExportRefusedError, OutputError
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.genai import continue_tokens
from lrqat.runtimes.layer_sources import SOURCES, Case
from lrqat.runtimes.layer_trace import FLOAT32_BOUND, compare_states
from lrqat.runtimes.onnx_runtime.session import OnnxRuntime
from tests.support.checkpoints import fused
from tests.support.zoo import SIZES, small_llama

TOKENS = np.random.default_rng(0).integers(1, SIZES["vocab_size"], 60)
# The builder was once seen to take another matrix of as many rows for the head.
SAME_SIZES = SIZES | {"intermediate_size": SIZES["vocab_size"]}
HEAD = {"lm_head": "q4_0"}
CASES = {
    "llama": (LlamaConfig(**SAME_SIZES), "q4_0", {}),
    "llama, a trained head": (LlamaConfig(**SAME_SIZES), "int8-asym-channel", HEAD),
    "llama, all on a grid": (
        LlamaConfig(**SAME_SIZES),
        "q4_0",
        {"embed_tokens": "q8_0", "lm_head": "q8_0"},
    ),
    "qwen2": ("qwen2", "int3-asym-g32", {}),
    "granite": ("granite", "int2-g32", {}),
    "qwen3, tied": ("qwen3", "int8-channel", {}),
    "qwen3, a trained table": ("qwen3", "q4_0", {"embed_tokens": "int8-asym-g32"}),
    "llama, a trained table": (
        LlamaConfig(**SAME_SIZES, tie_word_embeddings=True),
        "int2-g32",
        {"embed_tokens": "q4_0"},
    ),
}


def checkpoint_of(name, folder):
    config, grid, grid_for = CASES[name]
    return fused(config, folder, grid_for=grid_for, keep=(), grid=grid)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_builders_file_holds_the_checkpoint_and_computes_it(name, tmp_path):
    checkpoint = checkpoint_of(name, tmp_path / "fused")
    report = onnx_genai.write(onnx_genai.plan(checkpoint), tmp_path / "compact")
    found = onnx_genai.verify(tmp_path / "compact", checkpoint)
    assert len(found) == report.tensors >= report.quantized >= 14
    assert not any(found.values())
    graph = ir.load(tmp_path / "compact" / "model.onnx").graph
    assert {"GroupQueryAttention", "MatMulNBits"} <= {node.op_type for node in graph}
    tables = {name for name in graph.initializers if name.startswith(("lm_head", "model.embed"))}
    if checkpoint.config["tie_word_embeddings"]:  # one table, which both read
        assert all(name.startswith("lm_head") for name in tables)
        assert report.tensors == 15
    model = load_reference(checkpoint)
    expected = torch_logits(model)(TOKENS)
    with OnnxRuntime.open(tmp_path / "compact") as session:
        difference = np.abs(session.logits(TOKENS) - expected).max()
    assert difference < 1e-5 * np.abs(expected).max()
    states = SOURCES["onnx-genai"].run(
        Case(tmp_path / "compact", checkpoint, model, TOKENS, True, None)
    )
    assert list(states.runtime) == list(states.reference)  # fused sums are shown too
    found = compare_states(states.reference, states.runtime)
    assert max(d.relative for d in found) < FLOAT32_BOUND / 4
    prompt = TOKENS[:20].tolist()
    greedy = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)
    greedy = [token for token in greedy[0, len(prompt) :].tolist() if token]
    assert continue_tokens(tmp_path / "compact", prompt, 16) == greedy
    flipped = tmp_path / "compact" / "model.onnx.data"
    content = bytearray(flipped.read_bytes())
    offset = _offset(tmp_path / "compact")
    content[offset] ^= 1
    flipped.write_bytes(content)
    assert sum(onnx_genai.verify(tmp_path / "compact", checkpoint).values()) == 1


@pytest.mark.slow
def test_an_embedding_that_the_builder_rounded_is_not_published(tmp_path, monkeypatch):
    """Why tied models once gave other logits: left alone, the builder makes 4 bits of the table."""
    monkeypatch.setattr("exporters.onnx_genai.building._UNQUANTIZED", ("/lm_head/MatMul",))
    plan = onnx_genai.plan(checkpoint_of("qwen3, tied", tmp_path / "fused"))
    with pytest.raises(
        OutputError, match=r"1 weights are not .* first model\.embed_tokens\.weight"
    ):
        onnx_genai.write(plan, tmp_path / "compact")
    assert [path.name for path in tmp_path.iterdir()] == ["fused"]


def _offset(folder):
    """Where the integers of one product lie."""
    initializers = ir.load(folder / "model.onnx").graph.initializers
    name = "model.layers.0.mlp.down_proj.MatMulNBits.qweight"
    return initializers[name].const_value.offset


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_is_undone(bits):
    q = np.random.default_rng(0).integers(-(1 << bits - 1), 1 << bits - 1, (3, 32)).astype(np.int16)
    assert np.array_equal(unpack(pack(q, bits), bits, 32), q)
    # Lowest bits first, and 2^(bits-1) added.
    assert pack(np.zeros((1, 8 // bits), np.int16), bits).tolist() == [
        [sum(1 << (bits - 1) << shift for shift in range(0, 8, bits))]
    ]


@pytest.mark.parametrize(
    ("grid", "reason"),
    [("q4_1", "floating minimum.*int4-asym-g32"), ("iq4_nl", "codebook.*int4-g32")],
)
def test_what_matmulnbits_cannot_say_is_refused(grid, reason, make_small):
    plan = onnx_genai.plan(make_small(grid))
    assert plan.refusals
    with pytest.raises(ExportRefusedError, match=f"(?s){reason}"):
        onnx_genai.write(plan, plan.checkpoint.path / "never")


def test_a_trained_embedding_that_is_not_the_head_is_float32(make_small):
    grids = {"embed_tokens": "q4_0"}
    plan = onnx_genai.plan(make_small("q4_0", grids))
    assert not plan.refusals
    assert any("model.embed_tokens is float32" in note for note in plan.notes)
    assert all(part.name != "model.embed_tokens" for part in plan.tensors)
    plan = onnx_genai.plan(make_small("q4_0", grids, tied=True))
    assert not plan.refusals
    assert any(line.startswith("model.embed_tokens") for line in plan.summary())


def test_what_the_builder_was_not_seen_to_do_right_is_refused(fused_checkpoint):
    checkpoint = Checkpoint.open(fused_checkpoint)
    assert not onnx_genai.plan(checkpoint).refusals
    checkpoint.manifest["kept"]["model.layers.1.mlp.down_proj"] = "asked for"
    checkpoint.config |= {"model_type": "gpt_neox"}
    checkpoint.manifest["activations"] = {"kv_bits": 8}
    reasons = " ".join(onnx_genai.plan(checkpoint).refusals)
    assert "the builder's graph rounds neither; use --format onnx" in reasons
    assert "not for gpt_neox; use --format onnx" in reasons
    assert "model.layers.1.mlp.down_proj is unquantized" in reasons


@pytest.mark.parametrize(("size", "refused"), [(8, True), (24, True), (32, False)])
def test_heads_that_its_attention_does_not_rotate_are_refused(size, refused, tmp_path):
    """ONNX Runtime would say so when it runs: head_size shall be a multiple of 16."""
    checkpoint = fused(small_llama(head_dim=size), tmp_path / "fused", keep=(), grid_for={})
    reasons = onnx_genai.plan(checkpoint).refusals
    assert [f"its heads have {size} numbers" in reason for reason in reasons] == [True] * refused


def test_the_plan_is_plain_values_and_counts_the_bytes(fused_checkpoint):
    assert load_format("onnx-genai") is onnx_genai
    plan = onnx_genai.plan(Checkpoint.open(fused_checkpoint))
    listed = json.loads(json.dumps(plan.to_json()))
    assert {(part["bits"], part["block"]) for part in listed["tensors"]} == {(4, 32)}
    # 4 bits, 32 of a scale and 4 of a zero-point for 32 weights.
    weights = sum(part["rows"] * part["columns"] for part in listed["tensors"])
    assert listed["tensor_bytes"] == weights * (4 + 36 / 32) / 8


def test_levels_that_are_not_offered_are_refused():
    with pytest.raises(ExportRefusedError, match="not offered; choose 0, 1, 4"):
        onnx_genai.Options(matmul_accuracy_level=3)
