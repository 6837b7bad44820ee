"""Every ggml type in llama.cpp itself: the facts we rely on, and the logits of whole models."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from exporters import gguf
from exporters.gguf.blocks import integer_blocks
from exporters.gguf.file.header import read_header
from exporters.gguf.layout.fields import Fields
from exporters.gguf.layout.ggml_types import TYPES
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import RuntimeUnavailableError
from lrqat.models import fuse, hub, preparation, surgery
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.llama_cpp import ffi
from lrqat.runtimes.llama_cpp.products import rounding_activations
from lrqat.runtimes.llama_cpp.runtime import LlamaCpp
from tests.support.paths import SHARED

TYPES_OF_OURS = sorted(integer_blocks())
TOKENS = np.random.default_rng(0).integers(0, 500, 96)
PROMPTS = np.random.default_rng(5).integers(3, 500, (24, 2))


class CpuTraits(ctypes.Structure):
    """`struct ggml_type_traits_cpu` (ggml/include/ggml-cpu.h)."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("from_float", ctypes.c_void_p),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    ]


@pytest.fixture(scope="module")
def library() -> Any:
    try:
        loaded = ffi.load_library()
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    loaded.ggml_get_type_traits_cpu.restype = ctypes.POINTER(CpuTraits)
    loaded.llama_ftype_name.restype = ctypes.c_char_p
    loaded.ggml_validate_row_data.restype = ctypes.c_bool
    return loaded


@pytest.fixture(
    params=[*TYPES_OF_OURS, "q2_k-sym", "int8-channel", "int2-asym-channel", "int3-asym-g32"]
)
def checkpoint(request: Any, make_small: Callable[..., Checkpoint], library: Any) -> Checkpoint:
    """A fused model on the grid that is named after a type, and on four that are not."""
    return make_small(request.param)


@pytest.mark.parametrize("name", TYPES_OF_OURS)
def test_what_activations_are_rounded_to_and_what_files_are_called(name: str, library: Any) -> None:
    block = integer_blocks()[name]
    traits = library.ggml_get_type_traits_cpu(block.TYPE.number).contents
    assert TYPES[traits.vec_dot_type].name.lower() == block.ACTIVATIONS
    called = library.llama_ftype_name(int(block.FILE_TYPE)).decode()
    assert called.split(" - ")[0].split()[0].lower() == name


def test_logits_of_the_file_and_of_its_f32_twin(checkpoint: Checkpoint, tmp_path: Path) -> None:
    gguf.write(gguf.plan(checkpoint), tmp_path / "model.gguf")
    gguf.write(gguf.plan(checkpoint, gguf.Options(type="f32")), tmp_path / "twin.gguf")
    expected = torch_logits(load_reference(checkpoint))(TOKENS)
    with LlamaCpp.open(tmp_path / "twin.gguf") as llama:
        assert np.abs(llama.logits(TOKENS) - expected).max() < 1e-4
    with LlamaCpp.open(tmp_path / "model.gguf") as llama:
        found = llama.logits(TOKENS)
    error = (found - expected).std() / expected.std()
    assert 1e-4 < error < 0.05  # 8-bit activations, and nothing else


def test_8_bit_activations_are_all_of_the_difference(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """With the activations of the reference rounded as the type's kernel does, nothing is left.

    The median over prompts: in one or two the order of float32 sums moves a value over a rounding
    boundary (see test_activation_rounding).
    """
    gguf.write(gguf.plan(checkpoint), tmp_path / "model.gguf")
    model = load_reference(checkpoint)
    ours = torch_logits(model)
    with (
        LlamaCpp.open(tmp_path / "model.gguf") as llama,
        rounding_activations(model, tmp_path / "model.gguf", checkpoint),
    ):
        differences = [np.abs(ours(tokens) - llama.logits(tokens)).max() for tokens in PROMPTS]
    assert np.median(differences) < 5e-6


def test_llama_cpp_finds_every_block_valid(
    checkpoint: Checkpoint, tmp_path: Path, library: Any
) -> None:
    """What `--check-tensors` looks at."""
    gguf.write(gguf.plan(checkpoint), tmp_path / "model.gguf")
    header = read_header(tmp_path / "model.gguf")
    for name, info in header.tensors.items():
        octets = info.read().tobytes()
        size = ctypes.c_size_t(len(octets))
        assert library.ggml_validate_row_data(info.type.number, octets, size), name


def test_minus_128_does_not_overflow(library: Any) -> None:
    """The integer that llama.cpp's own Q8_0 never has, against the largest activations."""
    rng, kind = np.random.default_rng(0), integer_blocks()["q8_0"]
    ones = {"d": np.ones((1, 8), np.float16)}
    dot, out = library.ggml_vec_dot_q8_0_q8_0, ctypes.c_float()
    dot.restype = None
    dot.argtypes = [ctypes.c_int, ctypes.c_void_p, *[ctypes.c_size_t, ctypes.c_char_p] * 2,
                    ctypes.c_size_t, ctypes.c_int]  # fmt: skip
    for share in (0.0, 0.5, 1.0):
        for activation in ([127], [-127], [-127, 127]):
            w = np.where(rng.random((1, 256)) < share, rng.integers(-128, 128, 256), -128)
            a = rng.choice(np.array(activation), (1, 256))
            rows = [kind.pack(Fields(x.astype(np.int8), ones)).tobytes() for x in (w, a)]
            dot(256, ctypes.byref(out), 0, rows[0], 0, rows[1], 0, 1)
            assert out.value == (w * a).sum()


@pytest.mark.slow
def test_a_real_model_with_all_types_at_once(library: Any, tmp_path: Path) -> None:
    source = SHARED / "models" / "pycode-8m"
    if not source.is_dir():
        pytest.skip("no shared pycode-8m")
    model = hub.load_model(str(source), dtype=torch.float32)
    parts = ("self_attn.[qk]", "self_attn.[vo]", "mlp.up", "mlp.down")
    kinds = [f"{layer}.{part}" for layer in range(5) for part in parts]
    assert len(kinds) >= len(TYPES_OF_OURS)
    grid_for = {f"layers.{k}": name for k, name in zip(kinds, TYPES_OF_OURS, strict=False)}
    plan = surgery.plan_surgery(model, "q8_0", grid_for=grid_for)
    preparation.prepare(model, plan, preparation.Settings(rank=1, range_init="minmax"))
    base = {"name": "pycode-8m", "revision": None, "dtype": "float32"}
    folder = tmp_path / "fused"
    fuse.fuse(model, hub.load_tokenizer(str(source)), folder, plan=plan, base_model=base)
    checkpoint = Checkpoint.open(folder)
    made = gguf.plan(checkpoint)
    assert {t.block.NAME for t in made.tensors if t.source.quantized} == set(TYPES_OF_OURS)
    gguf.write(made, tmp_path / "model.gguf")
    prompt = "import os\n\n\ndef main("
    with LlamaCpp.open(tmp_path / "model.gguf") as llama:
        assert llama.generate(prompt, 12)
        tokens = llama.tokenize(prompt, add_special=True)
        found = llama.logits(tokens)
    expected = torch_logits(load_reference(checkpoint))(np.array(tokens))
    assert (found - expected).std() < 0.05 * expected.std()
