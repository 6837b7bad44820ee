"""A teacher of the zoo, blocks of text, and keys of their caches."""

import pytest

LENGTH, BLOCKS = 12, 7


@pytest.fixture(scope="session")
def teacher():
    import torch

    from tests.support.zoo import make

    model = make("gemma2, low caps")
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.3)  # it is sure of something
    return model


@pytest.fixture(scope="session")
def blocks():
    import numpy as np

    from lrqat.training.data.blocks import TokenBlocks
    from tests.support.zoo import VOCABULARY

    tokens = np.random.default_rng(0).integers(0, VOCABULARY, BLOCKS * LENGTH)
    return TokenBlocks(tokens.astype(np.int32), LENGTH)


@pytest.fixture
def two_a_shard(monkeypatch):
    """Shards of two blocks, the last of one, for k = 5 in float32."""
    from lrqat.training.objectives import cache_key

    monkeypatch.setattr(cache_key, "_SHARD_BYTES", 2 * LENGTH * 5 * 8 + 1)


def key_of(blocks, k=5, dtype="float32"):
    from lrqat.training.objectives.cache_key import CacheKey
    from tests.support.zoo import VOCABULARY

    return CacheKey.of(blocks, teacher="tiny", k=k, vocabulary=VOCABULARY, dtype=dtype)
