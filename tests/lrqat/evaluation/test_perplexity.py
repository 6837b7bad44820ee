import math

import numpy as np
import pytest
import torch

from lrqat.errors import DataError
from lrqat.evaluation.perplexity import Windows, compare, perplexity


def random_logits(seed, vocabulary=50):
    def logits(tokens):
        generator = np.random.default_rng([seed, *tokens.tolist()])
        return generator.normal(size=(len(tokens), vocabulary)).astype(np.float32)

    return logits


def test_the_rule_is_llama_perplexitys():
    """255 of 512 are scored: logits at 256..510 against tokens 257..511 (perplexity.cpp)."""
    windows = Windows.cut(range(512 * 3 + 100), 512, bos=7)
    assert windows.tokens.shape == (3, 512)
    assert windows.tokens[:, 0].tolist() == [7, 7, 7]
    assert windows.tokens[1, 1] == 513
    assert windows.scored_tokens == 3 * 255
    assert (windows.scored.start, windows.scored.stop) == (256, 511)
    assert np.array_equal(windows.targets(windows.tokens[2]), np.arange(1024 + 257, 1536))


def test_perplexity_and_its_error_agree_with_torch(monkeypatch):
    monkeypatch.setattr(
        "lrqat.evaluation.perplexity._CHUNK_LOGITS", 50 * 7
    )  # several chunks a window
    windows = Windows.cut(np.random.default_rng(0).integers(0, 50, 320), 64)
    logits = random_logits(1)
    result = perplexity(logits, windows)
    expected = torch.cat(
        [
            torch.nn.functional.cross_entropy(
                torch.from_numpy(logits(w)[32:63]).double(),
                torch.from_numpy(w[33:]),
                reduction="none",
            )
            for w in windows.tokens
        ]
    )
    assert result.tokens == len(expected) == 5 * 31
    assert math.isclose(result.perplexity, expected.mean().exp(), rel_tol=1e-9)
    error = expected.mean().exp() * (expected.var(correction=0) / (len(expected) - 1)).sqrt()
    assert math.isclose(result.standard_error, error, rel_tol=1e-9)


def test_a_model_compared_with_itself_does_not_differ():
    windows = Windows.cut(range(40), 8, limit=3)
    comparison = compare(random_logits(1), random_logits(1), windows)
    assert comparison.kl == comparison.relative_difference == comparison.standard_errors == 0
    assert comparison.same_top == 1
    assert comparison.target.tokens == 3 * 3


def test_different_models_differ_and_kl_agrees_with_torch():
    windows = Windows.cut(range(40), 8)
    one, two = random_logits(1), random_logits(2)
    comparison = compare(one, two, windows)
    log_p, log_q = (
        torch.cat([torch.from_numpy(f(w)[4:7]).double().log_softmax(-1) for w in windows.tokens])
        for f in (one, two)
    )
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    assert math.isclose(comparison.kl, kl, rel_tol=1e-9)
    assert comparison.same_top < 0.5
    assert comparison.target.perplexity == perplexity(two, windows).perplexity


@pytest.mark.parametrize(("tokens", "context"), [(1023, 512), (0, 8), (100, 2)])
def test_too_little_text_is_refused(tokens, context):
    with pytest.raises(DataError):
        Windows.cut(range(tokens), context)
