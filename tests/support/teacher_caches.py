"""A teacher, a text, and the cache that they make."""

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from lrqat.training.data.documents import TokenBlocks
from lrqat.training.objectives import teacher_cache
from lrqat.training.objectives.teacher_cache import (
    CacheKey,
)

VOCABULARY, LENGTH, BLOCKS = 61, 12, 7
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    config = Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=3.0, initializer_range=0.5)
    return Gemma2ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def blocks():
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, BLOCKS * LENGTH)
    return TokenBlocks(tokens.astype(np.int32), LENGTH)


@pytest.fixture
def two_a_shard(monkeypatch):
    """Shards of two blocks, the last of one, for k = 5 in float32."""
    monkeypatch.setattr(teacher_cache, "_SHARD_BYTES", 2 * LENGTH * 5 * 8 + 1)


def key_of(blocks, k=5, dtype="float32"):
    return CacheKey.of(blocks, teacher="tiny", k=k, vocabulary=VOCABULARY, dtype=dtype)
