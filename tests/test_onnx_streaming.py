"""Memory of an ONNX export: a few tensors, not the model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Tracing needs memory of its own, which a small model shows; what a large one adds is weights.
_MEASURED = """
import json, sys
from pathlib import Path
from exporters import onnx
from lrqat.checkpoint import Checkpoint

def memory(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])

def export(checkpoint):
    plan = onnx.plan(Checkpoint.open(checkpoint))
    Path("/proc/self/clear_refs").write_text("5")
    report = onnx.write(plan, Path(sys.argv[3], Path(checkpoint).name))
    return memory("VmHWM"), report.bytes, max(tensor.nbytes for tensor in plan.tensors)

small, _, _ = export(sys.argv[1])
large, size, largest = export(sys.argv[2])
print(json.dumps({"added": large - small, "bytes": size, "largest": largest}))
"""


@pytest.fixture(scope="module")
def small_and_large(tmp_path_factory):
    """Two checkpoints of one graph; the large one has a table of 154 MB in bfloat16."""
    from transformers import LlamaConfig

    from lrqat.random_fused import write_random_fused

    folders = []
    for name, width, vocabulary in (("small", 64, 64), ("large", 1024, 75000)):
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width,
            num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
            tie_word_embeddings=True,
        )  # fmt: skip
        folders.append(tmp_path_factory.mktemp("random") / name)
        write_random_fused(config, folders[-1], file_bytes=1 << 24)
    return folders


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_is_that_of_a_few_pieces(small_and_large, tmp_path):
    command = [sys.executable, "-c", _MEASURED, *map(str, small_and_large), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["largest"] > found["bytes"] / 1.5
    assert found["added"] < found["largest"] / 1.5  # whole tables: more than twice the largest
