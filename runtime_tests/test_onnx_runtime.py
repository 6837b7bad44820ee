"""ONNX Runtime and ONNX Runtime GenAI against PyTorch, on tiny models of several architectures."""

import collections

import numpy as np
import onnx
import pytest
import torch

from exporters import onnx as exporter
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import UserError
from lrqat.models import hub
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.genai import generate_tokens
from lrqat.runtimes.onnx_runtime.session import OnnxRuntime, provenance
from tests.support.checkpoints import fused
from tests.support.grids import SYMMETRIC_GRIDS
from tests.support.zoo import VOCABULARY

TOKENS = np.arange(3, 200)


def reference(folder):
    return load_reference(Checkpoint.open(folder))


@pytest.mark.parametrize("without_kernels", [False, True])
@pytest.mark.parametrize("grid", SYMMETRIC_GRIDS)
def test_logits_are_pytorchs(grid, without_kernels, onnx_folder, make_fused):
    expected = torch_logits(reference(make_fused(grid)))(TOKENS)
    with OnnxRuntime.open(onnx_folder(grid), without_kernels=without_kernels) as session:
        logits = session.logits(TOKENS)
    assert np.abs(expected).max() > 0.1
    assert np.abs(logits - expected).max() < 1e-5


@pytest.mark.parametrize("grid", SYMMETRIC_GRIDS)
def test_every_projection_runs_in_the_quantised_kernel(grid, onnx_folder, tmp_path):
    path = tmp_path / "optimised.onnx"
    with OnnxRuntime.open(onnx_folder(grid), optimized_path=path):
        pass
    operators = collections.Counter(
        node.op_type for node in onnx.load(path, load_external_data=False).graph.node
    )
    assert operators["MatMulNBits"] == 14
    assert operators["DequantizeLinear"] == 0


def test_accuracy_level_4_is_not_what_was_trained(onnx_folder, make_fused):
    """The reason for the default: ONNX Runtime's own rounds activations."""
    expected = torch_logits(reference(make_fused("q4_0")))(TOKENS)
    with OnnxRuntime.open(onnx_folder("q4_0"), accuracy_level=4) as session:
        assert np.abs(session.logits(TOKENS) - expected).max() > 1e-4


def test_decoding_token_by_token_with_the_cache_equals_one_pass(onnx_folder, make_fused):
    expected = torch_logits(reference(make_fused("q4_0")))(TOKENS[:40])
    with OnnxRuntime.open(onnx_folder("q4_0")) as opened:
        session = opened.session
        names = [output.name for output in session.get_outputs()]
        cache = {
            i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32)
            for i in session.get_inputs()[3:]
        }
        rows = []
        for step in (*[slice(0, 7), slice(7, 8)], *(slice(i, i + 1) for i in range(8, 40))):
            feeds = {
                "input_ids": TOKENS[None, step],
                "attention_mask": np.ones((1, step.stop), np.int64),
                "position_ids": np.arange(step.start, step.stop)[None],
            }
            results = dict(zip(names, session.run(None, feeds | cache), strict=True))
            rows.append(results.pop("logits")[0])
            cache = {n.replace("present", "past_key_values"): v for n, v in results.items()}
    assert np.abs(np.concatenate(rows) - expected).max() < 1e-5


def test_a_left_padded_batch_equals_each_sequence_alone(onnx_folder, make_fused):
    logits = torch_logits(reference(make_fused("q4_0")))
    long, short = TOKENS[:12], TOKENS[20:27]
    ids = np.stack([long, np.concatenate([np.zeros(5, np.int64), short])])
    mask = np.ones_like(ids)
    mask[1, :5] = 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    with OnnxRuntime.open(onnx_folder("q4_0")) as opened:
        cache = {
            i.name: np.zeros((2, i.shape[1], 0, i.shape[3]), np.float32)
            for i in opened.session.get_inputs()[3:]
        }
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        both = opened.session.run(["logits"], feeds | cache)[0]
    assert np.abs(both[0] - logits(long)).max() < 1e-5
    assert np.abs(both[1, 5:] - logits(short)).max() < 1e-5


def test_genai_generates_the_tokens_that_pytorch_does(onnx_folder, make_fused):
    folder = make_fused("q4_0")
    prompt, continuation = generate_tokens(onnx_folder("q4_0"), "def main(argv):\n    return ", 16)
    assert prompt == hub.load_tokenizer(folder)("def main(argv):\n    return ")["input_ids"]
    model = reference(folder)
    greedy = model.generate(
        torch.tensor([prompt]), max_new_tokens=16, do_sample=False, pad_token_id=0
    )
    assert continuation == greedy[0, len(prompt) :].tolist()


def test_the_file_itself_carries_its_provenance(onnx_folder):
    facts = provenance(onnx_folder("q8_0"))
    assert facts["lrqat.grid"] == "q8_0"
    assert facts["lrqat.base_model"] == "tiny-llama"


def test_what_cannot_be_loaded_is_named(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="ONNX Runtime cannot load"):
        OnnxRuntime.open(tmp_path)
    with pytest.raises(UserError, match="cannot load the tokenizer"):
        generate_tokens(tmp_path, "x", 1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "opset"), [("qwen3", 21), ("gpt_neox", 23)])
def test_another_operator_set_and_an_architecture_that_genai_does_not_know(name, opset, tmp_path):
    """No grouped-query attention there; LayerNorm with a bias."""
    keep = [r"layers\.0\.mlp\.(up_proj|dense_h_to_4h)"]
    checkpoint = fused(name, tmp_path / "fused", keep=keep, grid_for={})
    plan = exporter.plan(checkpoint, exporter.Options(opset=opset))
    exporter.write(plan, tmp_path / "onnx")
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, 50)
    expected = torch_logits(load_reference(checkpoint))(tokens)
    with OnnxRuntime.open(tmp_path / "onnx") as session:
        difference = np.abs(session.logits(tokens) - expected).max()
    assert difference < 1e-5 * np.abs(expected).max()
