"""The text model of a checkpoint with a vision tower, in both runtimes."""

import numpy as np
import pytest

from exporters import gguf, onnx
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.llama_cpp.gelu import with_table_gelu
from lrqat.runtimes.llama_cpp.runtime import LlamaCpp
from lrqat.runtimes.onnx_runtime.session import OnnxRuntime
from tests.lrqat.models.test_text_part import gemma3
from tests.support.checkpoints import fused
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
