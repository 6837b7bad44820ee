"""8-bit products on x86 without VNNI, where ONNX Runtime's sums saturate unless it is told not to.

On other processors these pass either way; what is asked of the file is asked everywhere.
"""

import json

import numpy as np
import pytest

from exporters import onnx as exporter
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.onnx_runtime.session import OnnxRuntime, session_entries
from tests.support.fake_quantized import make_rounded

ENTRY = "session.x64quantprecision"
PROMPTS = np.random.default_rng(0).integers(1, 512, (6, 9))


@pytest.mark.parametrize(
    "grid_for",
    [{}, {"up_proj": "q8_0"}, {"up_proj": "int8-asym-g32"}, {"embed_tokens": "q8_0"}],
    ids=str,
)
def test_integers_of_8_bits_on_both_sides_are_multiplied_exactly(grid_for, tiny_model, tmp_path):
    rounded = ["int8-tensor"] * (7 if "embed_tokens" not in grid_for else 8)
    if grid_for:  # it alone has its inputs as they are
        rounded[0 if "embed_tokens" in grid_for else 5] = None
    made = make_rounded(
        tiny_model, tmp_path / "f", grid_for={"proj": "int8-channel", **grid_for},
        activations=rounded,
    )  # fmt: skip
    folder = tmp_path / "o"
    plan = exporter.plan(made)
    exporter.write(plan, folder)
    assert session_entries(folder)[ENTRY] == "1"
    decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    assert decoder["session_options"][ENTRY] == "1"
    assert ENTRY in (folder / "README.md").read_text()
    reference = torch_logits(load_reference(made))
    with OnnxRuntime.open(folder) as session:
        differences = [
            np.abs(session.logits(prompt) - reference(prompt)).max()
            / np.abs(reference(prompt)).max()
            for prompt in PROMPTS
        ]
    assert np.median(differences) < 1e-3


def test_files_without_such_products_do_not_have_it(onnx_folder):
    assert ENTRY not in session_entries(onnx_folder("q8_0"))
