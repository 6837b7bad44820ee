"""llama.cpp itself against PyTorch: the graph of the F32 twin, tokens, text and refusals."""

import ctypes
import importlib.metadata
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from exporters import gguf
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import DataError, ModelError, RuntimeUnavailableError
from lrqat.models import fuse, hub, preparation, surgery
from lrqat.models.reference import load_reference, torch_logits
from lrqat.models.small_llama import make_tokenizer
from lrqat.runtimes.llama_cpp import ffi
from lrqat.runtimes.llama_cpp.runtime import LlamaCpp, dequantize_row
from lrqat.runtimes.parity import L1_POSITIONS
from tests.support.paths import SHARED

VOCABULARY = 400
TEXT = (Path(os.__file__).parent / "argparse.py").read_text(encoding="utf-8")
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3 rope": {"rope_parameters": LLAMA3},
    "linear rope": {"rope_parameters": LINEAR},
    "rope theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "head_dim": {"head_dim": 16},
    "one key-value head": {"num_key_value_heads": 1},
}

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


def fused(model: Any, tokenizer: Any, folder: Path) -> Checkpoint:
    """Put `model` on the q4_0 grid with random A and write it as a fused checkpoint."""
    plan = surgery.plan_surgery(model, "q4_0")
    preparation.prepare(model, plan, preparation.Settings(rank=4))
    for _, layer in preparation.quantized_layers(model):
        torch.nn.init.normal_(layer.lora_a, std=1.0)
    base = {"name": "tiny", "revision": None, "dtype": "float32"}
    fuse.fuse(model, tokenizer, folder, plan=plan, base_model=base)
    return Checkpoint.open(folder)


def random_model(kind: Any, config: Any) -> Any:
    """A model with weights large enough that a wrong row or frequency shows in the logits."""
    torch.manual_seed(0)
    model = kind(config).eval()
    model.config.architectures = [kind.__name__]  # which only saving and loading would set
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    return model


def largest_difference(checkpoint: Checkpoint, path: Path, tokens: Any) -> float:
    """Largest |d logit| between the F32 twin in llama.cpp and the reference in PyTorch."""
    gguf.write(gguf.plan(checkpoint, gguf.Options(type="f32", float_type="f32")), path)
    expected = torch_logits(load_reference(checkpoint))(np.asarray(tokens))
    assert expected.std() > 0.3
    with LlamaCpp.open(path) as llama:
        return float(np.abs(llama.logits(tokens) - expected).max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_f32_twin_of_every_variant(variant: str, tokenizer: Any, tmp_path: Path) -> None:
    model = random_model(LlamaForCausalLM, LlamaConfig(**SMALL | VARIANTS[variant]))
    checkpoint = fused(model, tokenizer, tmp_path / "fused")
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 128)
    assert largest_difference(checkpoint, tmp_path / "twin.gguf", tokens) < 1e-4


def test_f32_twin_of_mistral(tokenizer: Any, tmp_path: Path) -> None:
    model = random_model(MistralForCausalLM, MistralConfig(**SMALL, sliding_window=None))
    checkpoint = fused(model, tokenizer, tmp_path / "fused")
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 128)
    assert largest_difference(checkpoint, tmp_path / "twin.gguf", tokens) < 1e-4


def shared(name: str, folder: Path) -> Checkpoint:
    source = SHARED / "models" / name
    if not source.is_dir():
        pytest.skip(f"no shared {name}")
    keep = ["down_proj"] if name == "stories260k" else []
    model = hub.load_model(str(source), dtype=torch.float32)
    plan = surgery.plan_surgery(model, "q4_0", keep)
    preparation.prepare(model, plan, preparation.Settings(rank=4))
    base = {"name": name, "revision": None, "dtype": "float32"}
    fuse.fuse(model, hub.load_tokenizer(source), folder, plan=plan, base_model=base)
    return Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("name", "source", "prompt"),
    [
        ("stories260k", "tinystories-sample.txt", "Once upon a time"),
        ("pycode-8m", "pycode/valid.txt", "import os\n\n\ndef main("),
    ],
)
def test_shared_models(name: str, source: str, prompt: str, tmp_path: Path) -> None:
    checkpoint = shared(name, tmp_path / "fused")
    text = (SHARED / "data" / source).read_text(encoding="utf-8")[:4000]
    gguf.write(gguf.plan(checkpoint), tmp_path / "model.gguf")
    with LlamaCpp.open(tmp_path / "model.gguf") as llama:
        tokens = llama.tokenize(text, add_special=True)[:L1_POSITIONS]
        assert text.startswith(llama.detokenize(tokens))
        continued = llama.generate(prompt, 40)
        assert len(set(continued.split())) > 1
        assert llama.generate(prompt, 40) == continued
        real = llama.logits(tokens)
    assert largest_difference(checkpoint, tmp_path / "twin.gguf", tokens) < 1e-4
    expected = torch_logits(load_reference(checkpoint))(np.asarray(tokens))
    # 8-bit activations move logits a little and the best token rarely.
    assert (real.argmax(1) == expected.argmax(1)).mean() > 0.9


@pytest.fixture(scope="module")
def model_file(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    model = random_model(LlamaForCausalLM, LlamaConfig(**SMALL))
    checkpoint = fused(model, tokenizer, folder / "fused")
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
