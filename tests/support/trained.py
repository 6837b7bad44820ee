"""Tiny models as if trained: moved at random, fused, and loaded again as the reference."""

import functools

import torch
from torch import nn

from lrqat.checkpoint.reader import Checkpoint
from lrqat.models.fuse import fuse
from lrqat.models.preparation import Settings, quantized_layers
from lrqat.models.reference import load_reference
from lrqat.models.small_llama import make_tokenizer
from tests.support.zoo import VOCABULARY

# The layer adds a bias to the product; transformers does both in one kernel, which rounds once.
WITH_BIAS = {"qwen2", "qwen2_moe", "granite", "gpt2", "gpt_neox"}
IDS = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1))
SETTINGS = Settings(rank=4, range_init="minmax")


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def loss(model):
    return model(input_ids=IDS, labels=IDS, use_cache=False).loss


def move(model):
    """Random low-rank matrices and scales, as if trained."""
    torch.manual_seed(2)
    for _, layer in quantized_layers(model):
        nn.init.normal_(layer.lora_a, std=layer.grid.q_max / 64)
        layer.scale.data.mul_(torch.empty_like(layer.scale).uniform_(0.8, 1.2))
    return model


@functools.cache
def tokenizer():
    return make_tokenizer(["some text to make merges of, " * 20], vocabulary=VOCABULARY)


def round_trip(model, plan, folder):
    """Fuse into `folder`: the opened checkpoint, and the reference that it makes."""
    base = {"name": "tiny", "revision": None, "dtype": "float32"}
    checkpoint = Checkpoint.open(
        fuse(model, tokenizer(), folder / "fused", plan=plan, base_model=base)
    )
    return checkpoint, load_reference(checkpoint)


def assert_computes_the_same(name, model, reference):
    ours, theirs = logits(model), logits(reference)
    if name in WITH_BIAS:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(ours, theirs)
