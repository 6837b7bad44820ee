"""How much each token counts where a block is fitted."""

import pytest
import torch

from lrqat.training.blocks.loss import SINK_SHARE, block_loss, logits_loss

LENGTH = 8


@pytest.fixture
def target():
    return torch.randn(1, LENGTH, 64, generator=torch.Generator().manual_seed(0))


def loss(made, target, begins=(0,)):
    return float(
        block_loss(
            made,
            target,
            torch.isin(torch.arange(LENGTH), torch.tensor(begins, dtype=torch.long))[None],
        )
    )


def wrong_at(target, place):
    made = target.clone()
    made[0, place] *= 2
    return made


def test_it_is_relative_to_each_token(target):
    target[0, 3] *= 1000
    assert loss(target * 1.1, target) == pytest.approx(0.01, rel=1e-3)


def test_tokens_that_attention_leans_on_have_a_share_of_their_own(target):
    others = (1 - SINK_SHARE) / (LENGTH - 1)
    assert loss(wrong_at(target, 0), target) == pytest.approx(SINK_SHARE)
    assert loss(wrong_at(target, 3), target) == pytest.approx(others)
    assert loss(wrong_at(target, 3), target, (0, 3)) == pytest.approx(SINK_SHARE / 2)
    target[0, 3] *= 1000
    assert loss(wrong_at(target, 3), target) == pytest.approx(SINK_SHARE / 2)


def test_where_one_kind_is_missing_the_other_counts(target):
    assert loss(target * 2, target, ()) == pytest.approx(1 - SINK_SHARE)
    assert loss(target * 2, target, tuple(range(LENGTH))) == pytest.approx(SINK_SHARE)


def test_the_last_block_is_judged_by_its_logits(target):
    head = torch.nn.Linear(64, 500)
    made = (target + 0.1 * torch.randn(target.shape)).requires_grad_()
    found = logits_loss(head, 500)(made, target, torch.zeros(1, LENGTH, dtype=torch.bool))
    given, wanted = head(made).log_softmax(-1), head(target).log_softmax(-1)
    expected = (wanted.exp() * (wanted - given)).sum(-1).mean()
    torch.testing.assert_close(found, expected)
    one, other = (torch.autograd.grad(loss, made)[0] for loss in (found, expected))
    torch.testing.assert_close(one, other)
    with torch.no_grad():
        assert not logits_loss(head, 500)(target, target, torch.ones(1, LENGTH, dtype=torch.bool))
