"""L2 of a file whose embedding and head were rounded because the user asked for it."""

import numpy as np
import pytest
import torch

from exporters import gguf
from lrqat.checkpoint.reader import Checkpoint
from lrqat.models import fuse, preparation, surgery
from lrqat.models.reference import load_reference
from lrqat.models.small_llama import make_tokenizer, make_untrained_model
from lrqat.runtimes.llama_cpp.stored_values import as_stored
from lrqat.runtimes.parity import prove

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def checkpoint(text, tmp_path_factory):
    """A random model with rows of 256, as Q6_K needs them."""
    tokenizer = make_tokenizer([text], vocabulary=512)
    model = make_untrained_model(
        len(tokenizer), hidden=256, intermediate=256, layers=1, heads=4, kv_heads=2, seed=0
    )
    plan = surgery.plan_surgery(model, "q4_0")
    preparation.prepare(model, plan, preparation.Settings(rank=4, range_init="minmax"))
    base = {"name": "tiny", "revision": None, "dtype": "float32"}
    folder = tmp_path_factory.mktemp("stored") / "fused"
    fuse.fuse(model, tokenizer, folder, plan=plan, base_model=base)
    return Checkpoint.open(folder)


def test_the_reference_rounds_the_same_tables(checkpoint, text, tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    options = gguf.Options(embedding_type="q6_k", head_type="q8_0")
    gguf.write(gguf.plan(checkpoint, options), path)

    def proof():
        return prove(checkpoint.path, [str(path)], text[:20_000], context=64, limit=4)[0]

    rounded = proof()
    assert rounded.passed, rounded.to_json()
    monkeypatch.setattr(gguf, "rounded_tensors", lambda path, checkpoint: iter(()))
    exact = proof()
    assert exact.logit_difference == rounded.logit_difference  # L1 has no rounding at all
    assert exact.comparison.kl > rounded.comparison.kl


def test_rounded_tensors_are_those_of_the_file_and_put_back(checkpoint, tmp_path):
    path = tmp_path / "model.gguf"
    gguf.write(gguf.plan(checkpoint), path)
    assert not list(gguf.rounded_tensors(path, checkpoint))
    options = gguf.Options(embedding_type="bf16", head_type="q8_0")
    gguf.write(gguf.plan(checkpoint, options), path, overwrite=True)
    model = load_reference(checkpoint)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with as_stored(model, path, checkpoint):
        now = dict(model.named_parameters())
        changed = {name for name, p in now.items() if not torch.equal(p, before[name])}
        assert changed == {EMBEDDING, HEAD}
        halved = before[EMBEDDING].bfloat16().float()
        np.testing.assert_array_equal(now[EMBEDDING].detach(), halved)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
