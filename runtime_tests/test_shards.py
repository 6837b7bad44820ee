"""A model in several files in llama.cpp itself, and the reference written for llama-perplexity."""

import struct

import numpy as np
import pytest

from exporters import gguf
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import ModelError, OutputError, RuntimeUnavailableError
from lrqat.evaluation.perplexity import log_softmax
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.llama_cpp import ffi
from lrqat.runtimes.llama_cpp.runtime import LlamaCpp
from lrqat.runtimes.parity import prove
from lrqat.runtimes.targets import open_target

CONTEXT = 32


@pytest.fixture(scope="module", autouse=True)
def runtime():
    try:
        return ffi.load_library()
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def files(fused_checkpoint, tmp_path_factory):
    """The same model in one file, and the first of several."""
    folder, checkpoint = tmp_path_factory.mktemp("shards"), Checkpoint.open(fused_checkpoint)
    whole = gguf.write(gguf.plan(checkpoint), folder / "whole.gguf")
    options = gguf.Options(split_max_size="150000")
    parts = gguf.write(gguf.plan(checkpoint, options), folder / "parts.gguf")
    assert len(parts.files) > 2
    return whole.path, parts.path


def test_llama_cpp_computes_the_same_from_several_files(files):
    tokens = np.random.default_rng(0).integers(0, 512, 40)
    found = []
    for path in files:
        with LlamaCpp.open(path, n_ctx=64) as llama:
            found.append(llama.logits(tokens))
    assert np.array_equal(*found)
    with pytest.raises(ModelError, match="must be loaded with the first split"):
        LlamaCpp.open(files[1].replace("-00001-", "-00002-"))


def test_several_files_are_evaluated_as_one(files):
    sizes = []
    for path in files:
        with open_target(path, context=64) as target:
            sizes.append(target.bytes)
    assert sizes[0] < sizes[1] < sizes[0] + 3000


def test_parity_takes_the_first_file_and_writes_the_reference(
    files, fused_checkpoint, text, tmp_path
):
    base = tmp_path / "base.bin"
    options = {"context": CONTEXT, "limit": 2, "kl_base": base}
    (proof,) = prove(fused_checkpoint, [files[1]], text[:2000], **options)
    assert proof.verdicts["L0"]
    assert proof.verdicts["L1"]
    assert proof.same_tokens
    data = base.read_bytes()
    context, vocabulary, chunks = struct.unpack_from("<3i", data, 8)
    assert (data[:8], context, vocabulary, chunks) == (b"_logits_", CONTEXT, 512, 2)
    tokens = np.frombuffer(data, "<i4", 2 * CONTEXT, 20).reshape(2, CONTEXT)
    records = np.frombuffer(data, "<u2", -1, 20 + 8 * CONTEXT).reshape(2, 15, 4 + 512)
    reference = torch_logits(load_reference(Checkpoint.open(fused_checkpoint)))
    for window, record in zip(tokens.astype(np.int64), records, strict=True):
        scale, least = np.ascontiguousarray(record[:, :4]).view("<f4").T[:, :, None]
        exact = log_softmax(reference(window)[16:31])
        assert np.abs(scale * record[:, 4:] + least - exact).max() < 2e-4
    with pytest.raises(OutputError, match="exists"):
        prove(fused_checkpoint, [files[1]], text[:2000], **options)
