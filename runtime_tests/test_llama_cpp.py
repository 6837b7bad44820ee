"""llama.cpp itself: tokens, text, contexts and refusals.

The graph of every architecture is compared in test_gguf_architectures.py, real models in
test_real_models.py.
"""

import ctypes
import importlib.metadata
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from exporters import gguf
from lrqat.errors import DataError, ModelError, RuntimeUnavailableError
from lrqat.models.small_llama import make_tokenizer
from lrqat.runtimes.llama_cpp import ffi
from lrqat.runtimes.llama_cpp.runtime import LlamaCpp, dequantize_row
from tests.support.checkpoints import fused
from tests.support.zoo import CONFIGS, VOCABULARY

TEXT = (Path(os.__file__).parent / "argparse.py").read_text(encoding="utf-8")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def runtime() -> ctypes.CDLL:
    try:
        return ffi.load_library()
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer([TEXT], vocabulary=VOCABULARY)


@pytest.fixture(scope="module")
def model_file(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    config = CONFIGS["llama"]()
    config.max_position_embeddings = 1024
    checkpoint = fused(config, folder / "fused", tokenizer=tokenizer)
    gguf.write(gguf.plan(checkpoint), folder / "model.gguf")
    return folder / "model.gguf"


def test_logits_start_afresh_and_obey_causality(model_file: Path) -> None:
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, 40)
    with LlamaCpp.open(model_file, n_ctx=64) as llama:
        first = llama.logits(tokens)
        llama.logits(tokens[::-1])
        np.testing.assert_array_equal(llama.logits(tokens), first)
        assert first.shape == (40, VOCABULARY)
        assert first.dtype == np.float32
        # Another batch size takes other kernels, so only nearly equal.
        np.testing.assert_allclose(llama.logits(tokens[:10]), first[:10], atol=0.3)


def test_long_contexts_are_one_sequence(model_file: Path) -> None:
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, 700)
    with LlamaCpp.open(model_file, n_ctx=1024) as llama:
        assert llama.logits(tokens).shape == (700, VOCABULARY)
        assert isinstance(llama.generate(TEXT[:50], 10), str)


def test_text_round_trips(model_file: Path, tokenizer: Any) -> None:
    with LlamaCpp.open(model_file) as llama:
        for text in ("", "a , b . c ' d", "naïve 漢字 🚀\n\t ", TEXT[:3000]):
            tokens = llama.tokenize(text, add_special=False)
            assert tokens == tokenizer.encode(text, add_special_tokens=False)
            assert llama.detokenize(tokens) == text
        assert (llama.bos, llama.eos, llama.add_bos, llama.n_vocab) == (0, 0, False, VOCABULARY)
        assert llama.tokenize("<|endoftext|>", False, parse_special=True) == [0]
        assert llama.tokenize("<|endoftext|>", False) != [0]


def test_generation_stops_at_the_context(model_file: Path) -> None:
    with LlamaCpp.open(model_file, n_ctx=32) as llama:
        made = llama.tokenize(llama.generate("def f", 500), add_special=False)
        assert len(made) <= 64
        with pytest.raises(DataError, match="do not fit"):
            llama.generate(TEXT, 5)
        with pytest.raises(DataError, match="0 tokens"):
            llama.logits([])
        with pytest.raises(DataError, match="token ids"):
            llama.logits([VOCABULARY])


def test_closing_twice_is_allowed(model_file: Path) -> None:
    llama = LlamaCpp.open(model_file)
    llama.close()
    llama.close()


def test_files_that_cannot_be_loaded(model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no GGUF file"):
        LlamaCpp.open(tmp_path / "missing.gguf")
    (tmp_path / "cut.gguf").write_bytes(model_file.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"llama\.cpp cannot load"):
        LlamaCpp.open(tmp_path / "cut.gguf")


def test_dequantize_row_checks_its_arguments() -> None:
    assert dequantize_row("q8_0", bytes(34), 32).tolist() == [0.0] * 32
    with pytest.raises(DataError, match="are not 32 weights"):
        dequantize_row("q8_0", bytes(33), 32)
    with pytest.raises(RuntimeUnavailableError, match="no dequantiser"):
        dequantize_row("q9_9", bytes(34), 32)


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0.1")
    with pytest.raises(RuntimeUnavailableError, match="pip install xllamacpp=="):
        ffi._library_path()


def test_another_layout_is_refused(runtime: ctypes.CDLL) -> None:
    class Shifted(ctypes.Structure):
        _fields_: ClassVar[list[tuple[str, Any]]] = [
            ("inserted", ctypes.c_uint32),
            *ffi.ContextParams._fields_,
        ]

    good = runtime.llama_context_default_params()
    shifted = Shifted.from_buffer_copy(bytes(good) + bytes(16))
    ffi._check_defaults(good, ffi._CONTEXT_DEFAULTS)
    with pytest.raises(RuntimeUnavailableError, match="n_ctx"):
        ffi._check_defaults(shifted, ffi._CONTEXT_DEFAULTS)
