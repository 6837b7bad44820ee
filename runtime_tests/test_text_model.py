"""The text model of a model with a vision tower, in both runtimes."""

import numpy as np
import pytest

from exporters import gguf, onnx
from lrqat.checkpoint.reader import Checkpoint
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.llama_cpp.gelu import with_table_gelu
from lrqat.runtimes.llama_cpp.runtime import LlamaCpp
from lrqat.runtimes.onnx_runtime.session import OnnxRuntime
from lrqat.training.config import TrainConfig
from lrqat.training.run import train
from tests.lrqat.models.test_text_part import gemma3
from tests.support.checkpoints import fused
from tests.support.nested import nested_model
from tests.support.zoo import GELU_BOUND, L1_BOUND

TOKENS = np.arange(5, 45)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return fused(gemma3(), tmp_path_factory.mktemp("text") / "fused", keep=(), grid_for={})


def test_onnx(checkpoint, tmp_path):
    onnx.write(onnx.plan(checkpoint), tmp_path / "onnx")
    expected = torch_logits(load_reference(checkpoint))(TOKENS)
    with OnnxRuntime.open(tmp_path / "onnx") as session:
        assert np.abs(session.logits(TOKENS) - expected).max() < L1_BOUND


def test_gguf(checkpoint, tmp_path):
    path = tmp_path / "model.gguf"
    gguf.write(gguf.plan(checkpoint, gguf.Options(type="f32")), path)
    model = load_reference(checkpoint)
    with with_table_gelu(model):
        expected = torch_logits(model)(TOKENS)
    with LlamaCpp.open(path, n_ctx=64, n_threads=1) as llama:
        assert np.abs(llama.logits(TOKENS) - expected).max() < GELU_BOUND


@pytest.mark.parametrize("name", ["qwen3_vl", "mistral3"])
def test_what_was_trained_of_the_text_model_alone(
    name, tiny_model, text_file, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _, folder = nested_model(name, tiny_model, tmp_path / name)
    sizes = {"sequence_length": 32, "context": 32, "eval_windows": 2, "batch_size": 1}
    config = TrainConfig(
        model=folder, text_model=True, data=str(text_file), output=str(tmp_path / "run"),
        grid="q4_0", stages="model", steps=1, **sizes,
    )  # fmt: skip
    train(config)
    checkpoint = Checkpoint.open(tmp_path / "run")
    assert checkpoint.manifest["base_model"]["name"] == name
    exact = gguf.Options(type="f32", float_type="f32")
    gguf.write(gguf.plan(checkpoint, exact), tmp_path / "model.gguf")
    onnx.write(onnx.plan(checkpoint), tmp_path / "onnx")
    expected = torch_logits(load_reference(checkpoint))(TOKENS)
    with LlamaCpp.open(tmp_path / "model.gguf", n_ctx=64, n_threads=1) as llama:
        assert np.abs(llama.logits(TOKENS) - expected).max() < L1_BOUND
    with OnnxRuntime.open(tmp_path / "onnx") as session:
        assert np.abs(session.logits(TOKENS) - expected).max() < L1_BOUND
