"""NVFP4 in llama.cpp: which graphs multiply with the scale of a whole weight, and which do not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters import gguf
from exporters.gguf import planning
from exporters.gguf.file.header import read_header
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import RuntimeUnavailableError
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.llama_cpp import ffi
from lrqat.runtimes.llama_cpp.runtime import LlamaCpp
from tests.support.checkpoints import fused
from tests.support.zoo import CONFIGS, VOCABULARY

TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, 48)
WITH_FEED_FORWARD = ("llama", "mistral", "qwen3", "qwen3_moe")
ATTENTION_ALONE = ("qwen2", "gemma2", "gemma3", "phi3", "granite", "smollm3", "olmo2", "gpt2")
FEED_FORWARD_MODULES = r"\.mlp\.(?!gate$)"


@pytest.fixture(scope="module", autouse=True)
def runtime() -> Any:
    try:
        return ffi.load_library()
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """Function of a model's name and the grids of some modules -> all else of it on nvfp4."""

    def made(name: str, grid_for: dict[str, str]) -> Checkpoint:
        config = CONFIGS[name]()
        for size in ("intermediate_size", "moe_intermediate_size"):  # whole blocks of 64
            if hasattr(config, size):
                setattr(config, size, 128)
        folder = tmp_path_factory.mktemp("nvfp4") / "fused"
        return fused(config, folder, grid="nvfp4", keep=(), grid_for=grid_for)

    return made


def error_in_llama_cpp(checkpoint: Checkpoint, path: Path) -> float:
    """Mean difference of the logits from PyTorch's, as a part of their spread."""
    with LlamaCpp.open(path, n_ctx=64) as llama:
        found = llama.logits(TOKENS)
    expected = torch_logits(load_reference(checkpoint))(TOKENS)
    return float(np.abs(found - expected).mean() / expected.std())


def written(checkpoint: Checkpoint, path: Path) -> set[str]:
    """Write the file; the names of its scales."""
    gguf.write(gguf.plan(checkpoint), path)
    assert not any(gguf.verify(path, checkpoint).values())
    scales = {n: i for n, i in read_header(path).tensors.items() if n.endswith(".scale")}
    values = np.concatenate([info.read().view(np.float32).reshape(-1) for info in scales.values()])
    assert (np.frexp(values)[0] == 0.5).all()
    assert values.max() < 0.01  # so that nothing is right without them
    return set(scales)


@pytest.mark.parametrize("name", WITH_FEED_FORWARD)
def test_every_weight_of_these_graphs_gets_its_scale(
    name: str, make: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    head = {} if CONFIGS[name]().tie_word_embeddings else {"lm_head": "nvfp4"}
    checkpoint = make(name, head)
    scales = written(checkpoint, tmp_path / "model.gguf")
    assert ("output.scale" in scales) == bool(head)
    assert len(scales) == 2 * 7 + len(head)
    assert error_in_llama_cpp(checkpoint, tmp_path / "model.gguf") < 0.05


@pytest.mark.parametrize("name", ATTENTION_ALONE)
def test_attention_of_these_graphs_gets_its_scale_and_feed_forward_does_not(
    name: str, make: Callable[..., Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = make(name, {FEED_FORWARD_MODULES: "q8_0"})
    assert written(attention, tmp_path / "attention.gguf")
    assert error_in_llama_cpp(attention, tmp_path / "attention.gguf") < 0.05
    whole = make(name, {})
    refusals = gguf.plan(whole).refusals
    assert refusals
    for refusal in refusals:
        assert "does not multiply ffn_" in refusal
        assert "--grid-for" in refusal
    # If this fails, llama.cpp has learned it: enter them in the architecture's `scaled`.
    monkeypatch.setattr(planning, "refuses_scale", lambda *_: None)
    gguf.write(gguf.plan(whole), tmp_path / "whole.gguf")
    error = error_in_llama_cpp(whole, tmp_path / "whole.gguf")
    assert error > 0.5 or np.isnan(error)


def test_an_embedding_is_looked_up_without_a_scale(make: Callable[..., Checkpoint]) -> None:
    (refusal,) = gguf.plan(make("llama", {"embed_tokens": "nvfp4"})).refusals
    assert "does not multiply token_embd.weight" in refusal


def test_a_bias_of_feed_forward_is_refused_and_one_of_attention_is_right(
    make: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    """llama.cpp would end the process at the first: `build_ffn` asserts that there is no bias."""
    refusals = gguf.plan(make("llama, biases", {})).refusals
    assert len(refusals) == 2 * 3
    assert all("llama.cpp stops at ffn_" in r and "if that has a bias" in r for r in refusals)
    checkpoint = make("llama, biases", {FEED_FORWARD_MODULES: "q8_0"})
    assert written(checkpoint, tmp_path / "model.gguf")
    assert error_in_llama_cpp(checkpoint, tmp_path / "model.gguf") < 0.05


def test_a_wrong_scale_is_found(make: Callable[..., Checkpoint], tmp_path: Path) -> None:
    checkpoint, path = make("llama", {}), tmp_path / "model.gguf"
    written(checkpoint, path)
    info = read_header(path).tensors["blk.1.ffn_down.scale"]
    octets = bytearray(path.read_bytes())
    octets[info.start + 2] ^= 0x80  # the lowest bit of the exponent
    path.write_bytes(octets)
    found = {name for name, count in gguf.verify(path, checkpoint).items() if count}
    assert found == {"blk.1.ffn_down.scale"}
