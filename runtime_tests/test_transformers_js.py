"""transformers.js in Node, on a CPU and through WebGPU: the program of the folder's README.

Runs where TRANSFORMERS_JS names a folder in which `npm install @huggingface/transformers` was said.
WebGPU needs a driver; Mesa's for CPUs will do (its Vulkan driver lavapipe, from Mesa 25 on).
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from exporters import onnx as exporter
from lrqat import hub
from lrqat.checkpoint import Checkpoint
from lrqat.reference import load_reference

PACKAGES = os.environ.get("TRANSFORMERS_JS")
pytestmark = pytest.mark.skipif(
    not PACKAGES, reason="TRANSFORMERS_JS names no folder with transformers.js"
)


def greedy(checkpoint, count):
    """The README's prompt as PyTorch continues it."""
    tokenizer, model = hub.load_tokenizer(checkpoint.path), load_reference(checkpoint)
    prompt = tokenizer("Once upon a time", return_tensors="pt")
    found = model.generate(**prompt, max_new_tokens=count, do_sample=False, pad_token_id=0)
    return tokenizer.decode(found[0])


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (exporter.Options(), 32),
        (exporter.Options(preset="webgpu", float_type="float32"), 32),
        (exporter.Options(preset="webgpu"), 12),  # more, and half precision decides otherwise
    ],
    ids=["cpu", "webgpu in float32", "webgpu"],
)
def test_the_program_of_the_readme(options, count, fused_checkpoint, tmp_path):
    checkpoint, folder = Checkpoint.open(fused_checkpoint), tmp_path / "onnx"
    exporter.write(exporter.plan(checkpoint, options), folder)
    program = re.search(r"```js\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    (folder / "run.mjs").write_text(program.replace("tokens: 32", f"tokens: {count}"))
    (folder / "node_modules").symlink_to(Path(PACKAGES).absolute() / "node_modules")
    ran = subprocess.run(["node", "run.mjs"], cwd=folder, capture_output=True, text=True)
    if "Failed to get a WebGPU adapter" in ran.stderr:
        pytest.skip("there is no driver for WebGPU")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == greedy(checkpoint, count) + "\n"
