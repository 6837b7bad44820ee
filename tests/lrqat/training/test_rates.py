"""Rates that mean the same on every model."""

import pytest
import torch
from torch import nn

from lrqat.grids.grid import find_grid
from lrqat.init.range_init import find_scales
from lrqat.layers.frozen import DOWNCASTS
from lrqat.layers.linear import LRQATLinear
from lrqat.training.optimizers import make_optimizer
from lrqat.training.rates import rate_factors


def model_of(columns, size, grid="q4_0", rank=16):
    torch.manual_seed(0)
    weight = torch.randn(64, columns) * size
    kind = find_grid(grid)
    settings = {"grid": kind, "downcast": DOWNCASTS["fp32"], "rank": rank, "alpha": 7.0 * rank}
    return nn.Sequential(LRQATLinear(weight, find_scales(weight, kind, "l2"), **settings))


@pytest.mark.parametrize("grid", ["q4_0", "iq4_nl", "q4_1"])
@pytest.mark.parametrize(("columns", "size", "rank"), [(64, 1.0, 4), (512, 0.01, 16)])
def test_a_step_moves_v_by_the_rate_in_steps_of_the_grid(grid, columns, size, rank):
    model, rate = model_of(columns, size, grid, rank), 1e-3
    layer = model[0]
    before = layer.latent(slice(None))
    factor = rate_factors(model)["0.lora_a"]
    with torch.no_grad():  # what Adam does in its first step, whatever the size of the gradient
        layer.lora_a += rate * factor * torch.randn_like(layer.lora_a).sign()
    unit = layer.unit.detach().float().square().mean().sqrt()
    moved = (layer.latent(slice(None)) - before).detach().square().mean().sqrt() / layer.grid.step
    assert float(moved / unit) == pytest.approx(rate, rel=0.3)


def test_scales_move_by_a_share_of_their_own_size():
    small, large = (rate_factors(model_of(128, size)) for size in (0.01, 0.16))
    assert large["0.scale"] == pytest.approx(16 * small["0.scale"])
    assert large["0.lora_a"] == pytest.approx(small["0.lora_a"])


@pytest.mark.parametrize("name", ["scale", "minimum"])
@pytest.mark.parametrize("grid", ["q2_0", "q4_0", "q4_1", "q8_0", "iq4_nl"])
def test_a_step_of_the_ranges_moves_weights_by_the_rate(grid, name):
    model, rate = model_of(256, 0.02, grid), 1e-3
    layer = model[0]
    trained = layer.trained()
    if name not in trained:
        return
    before = layer.write_weight(torch.empty(64, 256), layer.masters())
    with torch.no_grad():
        trained[name] += rate * rate_factors(model)[f"0.{name}"]
    moved = layer.write_weight(torch.empty(64, 256), layer.masters()) - before
    step = layer.scale.detach().abs().mean() * layer.grid.step
    assert float(moved.square().mean().sqrt() / step) == pytest.approx(rate, rel=0.3)


def test_the_optimiser_has_them_in_few_groups():
    model = nn.Sequential(*(model_of(128, 0.01 * (1 + k / 50))[0] for k in range(12)))
    named = {n: p for n, p in model.named_parameters() if n.rpartition(".")[2] != "phi"}
    factors = rate_factors(model)
    rates = {"low_rank": 1e-3, "scale": 1e-2}
    optimizer = make_optimizer(
        "adamw", named.items(), rates, betas=(0.9, 0.95), weight_decay=0.0, factors=factors
    )
    assert len(optimizer.param_groups) <= 5
    found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in named.items():
        kind = "low_rank" if "lora" in name else "scale"
        assert found[id(parameter)] == pytest.approx(rates[kind] * factors[name])
