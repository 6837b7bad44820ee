"""Every architecture with an entry for GGUF, tiny and random, in llama.cpp itself.

One checkpoint each: projections on Q4_0, embedding and head on Q8_0, a part of the last layer in
floating point, norms and biases at random. Windows are shorter than the prompt.
"""

import dataclasses

import numpy as np
import pytest
from gguf import GGUFValueType

from exporters import gguf
from exporters.gguf.architectures import known_architectures
from lrqat.errors import RuntimeUnavailableError
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.llama_cpp import ffi
from lrqat.runtimes.llama_cpp.gelu import with_table_gelu
from lrqat.runtimes.llama_cpp.runtime import LlamaCpp
from tests.support.checkpoints import fused
from tests.support.zoo import CONFIGS, GELU_BOUND, IN_LLAMA_CPP, L1_BOUND, VOCABULARY

TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, 128)
TWIN = gguf.Options(type="f32", float_type="f32")


@pytest.fixture(scope="module", autouse=True)
def runtime():
    try:
        return ffi.load_library()
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def make_checkpoint(tmp_path_factory):
    """Function name -> the fused checkpoint of that model."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = fused(name, tmp_path_factory.mktemp("fused") / "checkpoint")
        return made[name]

    return make


def assert_same_graph(checkpoint, path, tokens, n_ctx=128):
    """The F32 twin in llama.cpp gives the logits of the reference in PyTorch."""
    gguf.write(gguf.plan(checkpoint, TWIN), path)
    model = load_reference(checkpoint)
    with with_table_gelu(model) as gelus, LlamaCpp.open(path, n_ctx=n_ctx) as llama:
        expected = torch_logits(model)(tokens)
        difference = np.abs(llama.logits(tokens) - expected)
    assert expected.std() > 0.3
    assert difference.max() < (GELU_BOUND if gelus else L1_BOUND)
    assert difference.mean() < L1_BOUND


def test_every_entry_is_here():
    kinds = {type(CONFIGS[name]()).__name__ for name in IN_LLAMA_CPP}
    assert len(kinds) == len(known_architectures())


@pytest.mark.parametrize("name", IN_LLAMA_CPP)
def test_the_file_holds_the_checkpoint_and_the_graph_computes_it(name, make_checkpoint, tmp_path):
    checkpoint, path = make_checkpoint(name), tmp_path / "model.gguf"
    report = gguf.write(gguf.plan(checkpoint), path)
    found = gguf.verify(path, checkpoint)
    assert len(found) == report.tensors
    assert not any(found.values())
    assert_same_graph(checkpoint, tmp_path / "twin.gguf", TOKENS)
    with LlamaCpp.open(path, n_ctx=128) as llama:  # 8-bit activations, which decide on experts
        real = llama.logits(TOKENS)
    expected = torch_logits(load_reference(checkpoint))(TOKENS)
    assert np.abs(real - expected).mean() < 0.05 * expected.std()


@pytest.mark.parametrize(("length", "context"), [(200, 256), (256, 256), (257, 512), (300, 512)])
def test_where_long_rope_is_exact(length, context, make_checkpoint, tmp_path):
    """Short texts in the original context of 256 positions, longer ones in a longer context."""
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, length)
    checkpoint = make_checkpoint("phi3, long rope")
    plan = gguf.plan(checkpoint)
    assert {e.key: e.value for e in plan.metadata}["phi3.context_length"] == 256
    assert any("up to 256 tokens" in note for note in plan.notes)
    assert_same_graph(checkpoint, tmp_path / "twin.gguf", tokens, n_ctx=context)


@pytest.mark.parametrize("context", [257, 512])
def test_short_texts_in_a_long_context_get_the_long_frequencies(context, make_checkpoint, tmp_path):
    """What the plan's note says is not exact: PyTorch with the long frequencies throughout."""
    checkpoint, path = make_checkpoint("phi3, long rope"), tmp_path / "twin.gguf"
    gguf.write(gguf.plan(checkpoint, TWIN), path)
    model = load_reference(checkpoint)
    own = torch_logits(model)(TOKENS)
    model.config.rope_parameters["original_max_position_embeddings"] = 1
    long = torch_logits(model)(TOKENS)
    with LlamaCpp.open(path, n_ctx=context) as llama:
        found = llama.logits(TOKENS)
    assert np.abs(found - long).max() < L1_BOUND
    assert np.abs(found - own).max() > 0.1


def altered(entry):
    """Another value of the same type."""
    if entry.type == GGUFValueType.ARRAY:
        return [*entry.value[:-1], not entry.value[-1]]
    return entry.value + "x" if entry.type == GGUFValueType.STRING else entry.value + 1


@pytest.mark.parametrize("name", IN_LLAMA_CPP)
def test_every_wrong_hyperparameter_is_caught(name, make_checkpoint, tmp_path):
    checkpoint, path = make_checkpoint(name), tmp_path / "model.gguf"
    plan = gguf.plan(checkpoint)
    wrong = [e for e in plan.metadata if e.key.startswith(f"{plan.architecture}.")]
    assert len(wrong) >= 10
    changed = [dataclasses.replace(e, value=altered(e)) if e in wrong else e for e in plan.metadata]
    gguf.write(dataclasses.replace(plan, metadata=changed), path)
    found = gguf.verify(path, checkpoint)
    assert {key for key, count in found.items() if count} == {entry.key for entry in wrong}
