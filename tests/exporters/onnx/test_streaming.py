"""Memory of an ONNX export: a few tensors, not the model."""

import pytest

from tests.support.memory import needs_proc, run_measured

# Tracing needs memory of its own, which a small model shows; what a large one adds is weights.
_MEASURED = """
from exporters import onnx

def export(checkpoint):
    plan = onnx.plan(Checkpoint.open(checkpoint))
    forget_the_peak()
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

    from benchmarks.random_fused import write_random_fused

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
@needs_proc
def test_memory_is_that_of_a_few_pieces(small_and_large, tmp_path):
    found = run_measured(_MEASURED, *small_and_large, tmp_path)
    assert found["largest"] > found["bytes"] / 1.5
    assert found["added"] < found["largest"] / 1.5  # whole tables: more than twice the largest
