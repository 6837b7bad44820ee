"""V whose integers make up for one another's errors."""

import pytest
import torch

from lrqat.grids.grid import find_grid
from lrqat.grids.quantize import Scales, dequantize, integers
from lrqat.init.range_init import find_scales
from lrqat.init.second_order import compensated

GRIDS = ["q2_0", "q4_0", "iq4_nl", "q4_1", "q4_k", "int4-g32"]


def correlated(tokens, width, seed):
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(tokens, width // 8, generator=generator)
    mixing = torch.randn(width // 8, width, generator=generator)
    return few @ mixing + 0.3 * torch.randn(tokens, width, generator=generator)


def errors(name, x):
    """Squared errors of the outputs, rounded to nearest and made up for."""
    weight = torch.randn(24, x.shape[1], generator=torch.Generator().manual_seed(1)) / 16
    grid = find_grid(name)
    scales = find_scales(weight, grid, "l2")
    latent = compensated(weight, scales, grid, x.T @ x / len(x))
    nearest = (weight + (0 if scales.offset is None else _wide(scales.offset, weight))) / _wide(
        scales.scale, weight
    )
    return [
        float(((weight - dequantize(integers(v.clone(), grid), scales)) @ x.T).square().sum())
        for v in (nearest, latent)
    ]


def _wide(groups, weight):
    return groups.repeat_interleave(weight.shape[1] // groups.shape[1], 1)


@pytest.mark.parametrize("name", GRIDS)
def test_outputs_of_other_inputs_are_nearer_too(name):
    nearest, made_up = errors(name, correlated(4096, 256, 0))
    assert made_up < 0.6 * nearest


def test_unrelated_inputs_leave_nothing_to_make_up_for():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    grid = find_grid("q4_0")
    scales = find_scales(weight, grid, "l2")
    latent = compensated(weight, scales, grid, torch.eye(64))
    torch.testing.assert_close(latent, weight / _wide(scales.scale, weight))


def test_two_columns_by_hand():
    """Equal inputs: what the first column loses, the second takes over whole (but for damping)."""
    grid = find_grid("int4-g32")
    weight = torch.zeros(1, 32)
    weight[0, 0], weight[0, 1] = 0.4, 0.4
    scales = Scales(torch.ones(1, 1))
    moments = torch.eye(32) * 1e-6
    moments[:2, :2] = 1.0
    moments[1, 1] += 1e-3
    latent = compensated(weight, scales, grid, moments)
    assert float(latent[0, 0]) == pytest.approx(0.4, abs=1e-5)
    assert float(latent[0, 1]) == pytest.approx(0.8, abs=0.01)


def test_zero_inputs_and_zero_weights_are_no_reason_to_fail():
    grid = find_grid("q4_0")
    weight = torch.zeros(4, 64)
    scales = find_scales(weight, grid, "l2")
    assert torch.isfinite(compensated(weight, scales, grid, torch.zeros(64, 64))).all()
