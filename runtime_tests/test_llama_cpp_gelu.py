"""That the table is all by which llama.cpp's GELU differs: without it L1 needs no bound of its own.

As with fake-quantized activations, short prompts have few values near the border of two of the
table's, and the median over prompts leaves out those that have one.
"""

import ctypes

import numpy as np
import pytest
import torch

from exporters import gguf
from lrqat.errors import RuntimeUnavailableError
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.llama_cpp import ffi
from lrqat.runtimes.llama_cpp.gelu import table_gelu, with_table_gelu
from lrqat.runtimes.llama_cpp.runtime import LlamaCpp
from tests.support.checkpoints import fused
from tests.support.zoo import VOCABULARY

PROMPTS = np.random.default_rng(5).integers(0, VOCABULARY, (24, 2))
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, 128)


@pytest.fixture(scope="module")
def library():
    try:
        return ffi.load_library()
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))


def test_it_is_llama_cpps_table(library):
    """But for a value or two by the last bit of a half, where two libraries' tanh differ."""
    library.ggml_cpu_init()
    halves = (ctypes.c_uint16 * 2**16).in_dll(library, "ggml_table_gelu_f16")
    x = np.arange(2**16, dtype=np.uint16).view(np.float16)
    inside = np.abs(x) < 10  # not NaN either; beyond, the table is not looked up
    theirs = np.frombuffer(halves, np.int16)[inside].astype(int)
    ours = table_gelu(torch.from_numpy(x[inside].astype(np.float32))).half().view(torch.int16)
    apart = np.abs(ours.numpy().astype(int) - theirs)
    assert inside.sum() == 37376
    assert apart.max() <= 1
    assert (apart > 0).sum() < 10


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gemma3, six layers"])
def test_the_table_is_all_of_the_difference(name, library, tmp_path):
    checkpoint, path = fused(name, tmp_path / "fused"), tmp_path / "twin.gguf"
    gguf.write(gguf.plan(checkpoint, gguf.Options(type="f32", float_type="f32")), path)
    model = load_reference(checkpoint)
    with LlamaCpp.open(path, n_ctx=128) as llama:
        found = [llama.logits(tokens) for tokens in PROMPTS]
        whole = llama.logits(TOKENS)

    def differences():
        """Of the prompts the median of max |d logit|, of the text the mean."""
        ours = torch_logits(model)
        each = [np.abs(ours(t) - f).max() for t, f in zip(PROMPTS, found, strict=True)]
        return np.median(each), np.abs(ours(TOKENS) - whole).mean()

    plain, mean = differences()
    with with_table_gelu(model) as gelus:
        assert gelus
        same, same_mean = differences()
    assert plain > 1e-4
    assert same < 1e-5
    assert same < plain / 50
    assert same_mean < mean / 5, "a long text too, where some values lie near a border"
