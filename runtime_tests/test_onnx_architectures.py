"""Every architecture that is known to export to ONNX, tiny and random, in the runtimes.

One checkpoint each: projections on Q4_0, a part of the last layer in floating point, norms and
biases at random. Windows are shorter than the prompts.
"""

import functools
import itertools
import json

import numpy as np
import onnx_ir as ir
import pytest
import torch

from exporters import onnx as exporter
from exporters.onnx.folder.model_file import read_model
from lrqat.errors import ExportRefusedError
from lrqat.models.hidden_states import anatomy, torch_hidden_states
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.genai import continue_tokens
from lrqat.runtimes.layer_trace import FLOAT32_BOUND, compare_states
from lrqat.runtimes.onnx_runtime.hidden_states import hidden_states
from lrqat.runtimes.onnx_runtime.session import OnnxRuntime
from lrqat.runtimes.openvino import OpenVino
from tests.support.checkpoints import KEPT, fused
from tests.support.zoo import IN_ONNX, VOCABULARY

TOKENS = np.random.default_rng(0).integers(1, VOCABULARY, (2, 80))
PADDING = 9  # tokens before the second sequence
EOS = 0
LONG_ROPE = "phi3, long rope from 64"
# One of every kind of attention: caps, windows, other frequencies past a length, none that rotate.
KINDS = ("gemma2, low caps", "gemma3", LONG_ROPE, "gpt2")
WEBGPU = exporter.Options(preset="webgpu", float_type="float32")
AT_ONCE = (0, 80)
STEPS = (0, 30, 33, *range(34, 44), 80)  # a prompt, a few tokens, one at a time, many


@pytest.fixture(scope="module")
def reports():
    """What the exporter reported, by folder."""
    return {}


@pytest.fixture(scope="module")
def made(tmp_path_factory, reports):
    """Function name, options -> the reference in PyTorch and the ONNX folder of that model."""

    @functools.cache
    def checkpoint(name):
        folder = tmp_path_factory.mktemp("fused") / "fused"
        return fused(name, folder, grid_for={}, keep=(KEPT,))

    @functools.cache
    def make(name, options=None):
        folder = tmp_path_factory.mktemp("onnx") / "onnx"
        reports[folder] = exporter.write(exporter.plan(checkpoint(name), options), folder)
        return load_reference(checkpoint(name)), folder

    return make


def onnx_runtime(folder):
    """The model as a function of all inputs by name, and an empty cache for it."""
    session = OnnxRuntime.open(folder).session
    names = [output.name for output in session.get_outputs()]
    cache = {
        i.name: np.zeros((len(TOKENS), i.shape[1], 0, i.shape[3]), np.float32)
        for i in session.get_inputs()
        if i.name.startswith("past_key_values")
    }
    return lambda feeds: dict(zip(names, session.run(None, feeds), strict=True)), cache


def openvino(folder):
    pytest.importorskip("openvino")
    opened = OpenVino.open(folder)
    return opened.run, opened.empty_cache(len(TOKENS))


def in_steps(model, cache, mask, positions, steps):
    """Logits of `TOKENS`, computed in parts, each with the cache of those before it."""
    logits = []
    for start, stop in itertools.pairwise(steps):
        part = slice(start, stop)
        feeds = {
            "input_ids": TOKENS[:, part],
            "attention_mask": mask[:, :stop],
            "position_ids": positions[:, part],
        }
        results = model(feeds | cache)
        logits.append(results.pop("logits"))
        cache = {n.replace("present", "past_key_values"): v for n, v in results.items()}
    return np.concatenate(logits, axis=1)


def all_at_once(model, mask, positions):
    """Logits of `TOKENS` from PyTorch."""
    given = {"input_ids": TOKENS, "attention_mask": mask, "position_ids": positions}
    given = {name: torch.from_numpy(value) for name, value in given.items()}
    with torch.inference_mode():
        return model(**given, use_cache=False).logits.numpy()


def assert_close(logits, expected):
    assert expected.std() > 0.2
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("runtime", [onnx_runtime, openvino])
@pytest.mark.parametrize("name", IN_ONNX)
def test_logits_are_pytorchs_all_at_once_and_step_by_step_in_a_padded_batch(name, runtime, made):
    model, folder = made(name)
    assert_computes(name, model, *runtime(folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "notes"),
    [
        ("llama, llama3 rope", None, []),
        ("gemma2, low caps", None, ["0 of 2 attentions became one node with the cache inside: "
            "2 written as products and a softmax by transformers; the results are the same, but "
            "every token copies the cache more often"]),
        ("gemma2, low caps", WEBGPU, []),  # products were asked for
    ],
)  # fmt: skip
def test_a_report_says_when_attention_was_not_fused(name, options, notes, made, reports):
    folder = made(name, options)[1]
    report = reports[folder]
    assert report.notes == notes
    assert report.passes["compact_attention"] is not name.startswith("gemma2")
    fused = [len(node.outputs) for node in ir.load(folder / "model.onnx").graph
             if node.op_type == "Attention"]  # fmt: skip
    assert fused == ([3, 3] if report.passes["compact_attention"] else [])
    assert report.to_json()["notes"] == notes


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_ONNX)
def test_every_layers_hidden_state_is_found_in_the_graph(name, made):
    model, folder = made(name)
    found = hidden_states(folder, read_model(folder), TOKENS[0], anatomy(model))
    expected = torch_hidden_states(model, TOKENS[0])
    assert list(found) == list(expected)
    assert max(d.relative for d in compare_states(expected, found)) < FLOAT32_BOUND / 4


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_attention_as_products_and_unsigned_integers_give_the_same(name, made):
    model, folder = made(name, WEBGPU)
    kinds = {node.op_type for node in ir.load(folder / "model.onnx").graph}
    assert "Softmax" in kinds
    assert "Attention" not in kinds
    assert_computes(name, model, *onnx_runtime(folder))


def assert_computes(name, model, run, cache):
    """Whether `run` computes a padded batch as PyTorch does, in all ways to cut it."""
    mask = np.ones_like(TOKENS)
    mask[1, :PADDING] = 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    expected = all_at_once(model, mask, positions)
    if name != LONG_ROPE:  # its frequencies are those of the longest text of a batch
        alone = torch_logits(model)
        assert_close(alone(TOKENS[1, PADDING:]), expected[1, PADDING:])
    for steps in (AT_ONCE, STEPS):
        if (name, steps) != (LONG_ROPE, STEPS):  # nor are PyTorch's own, step by step
            logits = in_steps(run, cache, mask, positions, steps)
            assert_close(logits[0], expected[0])
            assert_close(logits[1, PADDING:], expected[1, PADDING:])


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_ONNX)
def test_genai_continues_as_transformers_does(name, made):
    model, folder = made(name)
    prompt = TOKENS[1, :40].tolist()
    # Where its frequencies change, after 64 tokens, transformers computes the cache anew.
    count = 24 if name == LONG_ROPE else 32
    greedy = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)
    greedy = greedy[0, len(prompt) :].tolist()
    assert continue_tokens(folder, prompt, count) == greedy[: -1 if greedy[-1] == EOS else None]
    assert len(greedy) > 4


@pytest.mark.slow
def test_the_cache_keeps_the_shape_that_genai_config_says(made):
    for name in ("gpt2", "qwen3"):
        _, folder = made(name)
        decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
        shape = ir.load(folder / "model.onnx").graph.inputs[3].shape
        assert shape[1] == decoder["num_key_value_heads"]
        assert shape[3] == decoder["head_size"]


def test_frequencies_that_depend_on_earlier_texts_are_refused(fused_checkpoint, monkeypatch):
    from lrqat.checkpoint.reader import Checkpoint

    checkpoint = Checkpoint.open(fused_checkpoint)
    checkpoint.config["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0}
    with pytest.raises(ExportRefusedError, match=r"dynamic.*yarn or linear"):
        exporter.write(exporter.plan(checkpoint), fused_checkpoint / "never")
