"""What weights cost: the estimate against the measured KL, in every kind of layer."""

import pytest
import torch

from lrqat.budget.curvature import measure_curvature
from lrqat.budget.prices import find_prices
from lrqat.budget.rounding import all_rounded, parameter_of
from lrqat.grids.grid import GRIDS, find_grid
from lrqat.models.surgery import plan_surgery
from tests.support.trained import logits
from tests.support.zoo import VOCABULARY, make

GRIDS_PRICED = [GRIDS[name] for name in ("q4_0", "iq4_nl", "q5_0", "q8_0")]
TEXT = torch.randint(0, VOCABULARY, (8, 64), generator=torch.Generator().manual_seed(3))


def priced(name):
    model = make(name)
    for parameter in model.parameters():  # random models say next to nothing
        if parameter.ndim > 1:
            parameter.data.mul_(2)
    surgery = plan_surgery(model, "q4_0", embedding_and_head="q8_0")
    return model, find_prices(model, surgery, GRIDS_PRICED, TEXT, other_bytes=1000)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "qwen3_moe"])
def test_the_sum_over_weights_predicts_the_measured_kl(name):
    model, prices = priced(name)
    before = logits(model)
    for grid in ("q4_0", "q5_0"):
        allotment = prices.measured(model, prices.price(dict.fromkeys(prices.targets, grid)), TEXT)
        assert allotment.estimate == pytest.approx(allotment.kl, rel=0.4)
    assert torch.equal(before, logits(model))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_layer_of_transposed_weights_is_priced_by_its_own_rows_and_columns():
    model, prices = priced("gpt2")
    name = "transformer.h.0.mlp.c_fc"
    target = prices.targets[name]
    weights = {name: parameter_of(model, name, target)}
    curvature = measure_curvature(model, weights, TEXT)[name]
    assert torch.equal(prices.importance[name][0], curvature.rows)
    assert curvature.columns.shape == target.shape[:1]


def test_sizes_are_kept_and_the_loss_falls_with_them():
    _, prices = priced("llama")
    sizes = torch.linspace(prices.least_bytes, prices.most_bytes, 7).ceil().int().tolist()
    points = [prices.allot(size) for size in sizes]
    assert all(point.nbytes <= size for point, size in zip(points, sizes, strict=True))
    losses = [point.estimate for point in points]
    assert losses == sorted(losses, reverse=True)
    assert prices.price({"model.embed_tokens": "q2_k"}) is None


def test_one_at_a_time_rounds_what_all_at_once_rounds():
    model, prices = priced("qwen3")
    allotment = prices.price(dict.fromkeys(prices.targets, "q4_0"))
    grids = {name: find_grid(grid) for name, grid in allotment.grids.items()}
    with torch.no_grad():
        base = model(TEXT).logits.log_softmax(-1)
        with all_rounded(model, prices.targets, grids, prices.importance):
            ours = model(TEXT).logits.log_softmax(-1)
    kl = (base.exp() * (base - ours)).sum(-1).mean()
    assert prices.measured(model, allotment, TEXT).kl == pytest.approx(float(kl), rel=1e-5)
