"""Memory that does not grow with the model, bytes that do not depend on processes."""

import numpy as np
import pytest

from exporters import gguf, parallel
from exporters.gguf.architectures import find_architecture
from exporters.gguf.tensors import sources
from lrqat.checkpoint.reader import Checkpoint
from tests.support.memory import needs_proc, run_measured

_MEASURED = """
from exporters import gguf

checkpoint = Checkpoint.open(sys.argv[1])
plan = gguf.plan(checkpoint)
forget_the_peak()
base = memory("VmRSS")
report = gguf.write(plan, sys.argv[2], workers=1)  # of several each takes as much
largest = max(tensor.source.working_bytes for tensor in plan.tensors)
assert "torch" not in sys.modules
print(json.dumps({"added": memory("VmHWM") - base, "largest": largest, "bytes": report.bytes}))
"""


@pytest.fixture(scope="module")
def many_layers(tmp_path_factory):
    """A checkpoint of 114 million weights, none of its tensors more than a million."""
    from transformers import LlamaConfig

    from benchmarks.random_fused import write_random_fused

    config = LlamaConfig(
        vocab_size=512, hidden_size=512, intermediate_size=2048, num_hidden_layers=29,
        num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("random") / "fused"
    assert write_random_fused(config, folder, file_bytes=1 << 24) > 110e6
    return folder


@needs_proc
def test_memory_is_that_of_a_few_tensors(many_layers, tmp_path):
    found = run_measured(_MEASURED, many_layers, tmp_path / "model.gguf")
    assert found["added"] < 3 * found["largest"] + 2**24
    assert found["added"] < found["bytes"] / 1.5


def test_random_checkpoints_are_valid_and_export_exactly(many_layers, tmp_path):
    checkpoint = Checkpoint.open(many_layers)
    assert len(list(many_layers.glob("*.safetensors"))) > 3
    tensor = checkpoint.quantized(checkpoint.quantized_names[-1])
    assert (tensor.q.min(), tensor.q.max()) == (-8, 7)
    plan = gguf.plan(checkpoint)
    assert {t.block.NAME for t in plan.tensors} == {"q4_0", "f16", "f32"}


def test_bytes_do_not_depend_on_processes(fused_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_SMALL_BYTES", 0)
    plan = gguf.plan(Checkpoint.open(fused_checkpoint))
    hashes = {
        gguf.write(plan, tmp_path / str(workers), workers=workers).sha256
        for workers in (1, 2, 3, None)
    }
    assert len(hashes) == 1
    for workers in (1, 3):
        checks = gguf.check_tensors(tmp_path / "1", plan.checkpoint, workers=workers)
        assert [check.ok for check in checks] == [True] * len(plan.tensors)


def test_progress_tells_of_every_tensor_twice(fused_checkpoint, tmp_path):
    plan = gguf.plan(Checkpoint.open(fused_checkpoint))
    written, verified = [], []
    gguf.write(plan, tmp_path / "x.gguf", progress=written.append, verified=verified.append)
    assert written == verified == [tensor.source.name for tensor in plan.tensors]


def test_pieces_are_small_and_make_up_the_whole(fused_checkpoint, monkeypatch):
    monkeypatch.setattr(sources, "_PIECE_VALUES", 1000)
    monkeypatch.setattr(sources, "_PIECE_INTEGERS", 1000)
    checkpoint = Checkpoint.open(fused_checkpoint)
    for source in sources.find_sources(checkpoint, find_architecture(checkpoint.config)):
        whole = source.read_values(checkpoint)
        pieces = list(source.read_pieces(checkpoint))
        assert all(0 < values.size <= max(1000, whole.shape[-1]) for _, values in pieces)
        assert np.array_equal(np.concatenate([values for _, values in pieces]), whole)
        for rows, values in pieces:
            assert np.array_equal(values, whole[rows])


def test_rows_of_a_file_are_read_alone(fused_checkpoint):
    checkpoint = Checkpoint.open(fused_checkpoint)
    name = "model.embed_tokens.weight"
    whole = checkpoint.floating(name)
    for rows in (slice(0, 1), slice(3, 40), slice(500, 512), slice(7, 7)):
        assert np.array_equal(checkpoint.floating(name, rows), whole[rows])
