"""Architectures beside those of `test_onnx_architectures.py`: what they need, and GenAI lacks."""

import numpy as np
import pytest

from exporters import onnx
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.onnx_runtime.session import OnnxRuntime
from tests.support.checkpoints import fused
from tests.support.zoo import VOCABULARY


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("ctrl", "node"),  # a tied head with a bias
        ("falcon, one key-value head", "products"),
        ("opt", "node"),  # learned positions, which begin at 2
        ("apertus", "node"),  # buffers that are equal in all layers
    ],
)
def test_logits_are_pytorchs(name, attention, tmp_path):
    checkpoint = fused(name, tmp_path / "fused", keep=(), grid_for={})
    onnx.write(onnx.plan(checkpoint, onnx.Options(attention=attention)), tmp_path / "onnx")
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, 50)
    expected = torch_logits(load_reference(checkpoint))(tokens)
    with OnnxRuntime.open(tmp_path / "onnx") as session:
        difference = np.abs(session.logits(tokens) - expected).max()
    assert difference < 1e-5 * np.abs(expected).max()
    assert not (tmp_path / "onnx" / "genai_config.json").exists()
