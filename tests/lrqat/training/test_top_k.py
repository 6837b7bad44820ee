"""The divergence from the k most likely tokens, against its definition."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrqat.training.objectives.losses import (
    LogitTargets,
    TopKTargets,
)


def distributions(seed, vocabulary, spread):
    generator = torch.manual_seed(seed)
    student, teacher = spread * torch.randn(2, 1, 5, vocabulary, generator=generator).double()
    return student.log_softmax(-1), teacher.log_softmax(-1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    vocabulary=st.integers(2, 40),
    data=st.data(),
    spread=st.sampled_from([0.1, 2.0, 20.0]),
)
def test_top_k_is_a_divergence_of_k_plus_one_outcomes_and_a_lower_bound(
    seed, vocabulary, data, spread
):
    k = data.draw(st.integers(1, vocabulary))
    student, teacher = distributions(seed, vocabulary, spread)
    values, ids = teacher.topk(k)
    found = TopKTargets(values, ids).divergence(student[0], slice(0, 5))
    full = LogitTargets(teacher, lambda x: x).divergence(student[0], slice(0, 5))
    assert -1e-9 <= found <= full + 1e-9
    others = torch.ones(1, 5, vocabulary, dtype=torch.bool).scatter(-1, ids, False)
    lumped = [
        torch.cat([x.gather(-1, ids).exp(), (x.exp() * others).sum(-1, keepdim=True)], -1)
        for x in (teacher, student)
    ]
    expected = torch.special.xlogy(lumped[0], lumped[0] / lumped[1].clamp(min=1e-300)).sum()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    if k == vocabulary:
        torch.testing.assert_close(found, full)
    same = TopKTargets(*student.topk(k)).divergence(student[0], slice(0, 5))
    assert abs(same.item()) < 1e-7


def test_rounded_probabilities_above_one_are_scaled_down():
    student, teacher = distributions(0, 30, 8.0)
    values, ids = (teacher * 0.98).topk(29)
    assert values.exp().sum(-1).min() > 1
    found = TopKTargets(values, ids).divergence(student[0], slice(0, 5))
    full = LogitTargets(values, lambda x: x).divergence(student[0].gather(-1, ids[0]), slice(0, 5))
    assert found > 0
    torch.testing.assert_close(found, full)


def test_top_k_has_a_finite_gradient_where_the_student_leaves_nothing_for_the_rest():
    student = torch.tensor([[[200.0, 0.0, -200.0]]], requires_grad=True)
    teacher = torch.tensor([[[0.5, 0.0, -0.5]]]).log_softmax(-1)
    loss = TopKTargets(*teacher.topk(1)).divergence(student.log_softmax(-1)[0], slice(0, 1))
    loss.backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().max() > 0.1
