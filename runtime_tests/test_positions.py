"""GPT-2 has 128 positions here: no runtime is given a window that goes past them.

llama.cpp would abort the process, tests and all.
"""

import numpy as np
import pytest

from exporters import gguf, onnx
from lrqat.errors import DataError, UserError
from lrqat.runtimes.llama_cpp.runtime import LlamaCpp
from lrqat.runtimes.onnx_runtime.perplexity import onnx_perplexity
from lrqat.runtimes.parity import prove
from lrqat.runtimes.targets import continuation, evaluate
from tests.support.checkpoints import fused
from tests.support.onnx_exports import write_onnx


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(checkpoint, GGUF file, ONNX folder) of the tiny GPT-2."""
    folder = tmp_path_factory.mktemp("positions")
    checkpoint = fused("gpt2", folder / "fused")
    gguf.write(gguf.plan(checkpoint), folder / "model.gguf")
    write_onnx(onnx.plan(checkpoint), folder / "onnx")
    return checkpoint.path, folder / "model.gguf", folder / "onnx"


def test_llama_cpp_gives_learned_positions_and_no_more(exported):
    with LlamaCpp.open(exported[1], n_ctx=512) as llama:
        assert llama.n_ctx == llama.n_ctx_train == 128
        assert np.isfinite(llama.logits([1] * 128)).all()
        with pytest.raises(DataError, match="129 tokens do not fit"):
            llama.logits([1] * 129)


def test_every_target_refuses_a_longer_window_before_the_first(exported, text):
    for path in map(str, exported):
        _, found = evaluate(path, text, context=128, limit=1)
        assert np.isfinite(found.perplexity)
        with pytest.raises(DataError, match="--context 129 is more than the 128 positions"):
            evaluate(path, text, context=129, limit=1)


def test_a_continuation_ends_with_the_positions(exported):
    for path in map(str, exported[:2]):
        assert isinstance(continuation(path, "def", 200, context=512), str)


def test_a_proof_refuses_a_longer_window(exported, text):
    with pytest.raises(DataError, match="--context 256 is more than the 128 positions"):
        prove(exported[0], [str(exported[1])], text, context=256, limit=1)


def test_what_onnx_runtime_cannot_run_is_one_message(exported, text):
    assert np.isfinite(onnx_perplexity(exported[2], text, context=128, limit=1).perplexity)
    with pytest.raises(UserError, match="ONNX Runtime cannot run 256 tokens"):
        onnx_perplexity(exported[2], text, context=256, limit=1)
