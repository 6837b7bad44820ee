"""Directions of inputs against an eigendecomposition, and what A does with the rounding error."""

import pytest
import torch
from torch import nn

from lrqat.grids.grid import GRIDS
from lrqat.init import input_statistics
from lrqat.init.importance import sum_of_squares
from lrqat.init.input_directions import find_directions, sketch_of
from lrqat.init.lora_init import initialise, round_to_nearest
from lrqat.init.range_init import find_scales
from lrqat.init.starts import LORA_INITS
from lrqat.layers.frozen import DOWNCASTS
from lrqat.layers.linear import LRQATLinear
from lrqat.models import hub
from tests.support.grids import KINDS_OF_GRIDS

RANK = 8


def correlated(tokens=4096, width=256, seed=0):
    """Inputs most of whose variance lies in a dozen directions, as those of language models."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    strengths = torch.cat([torch.linspace(8, 2, 12), torch.full((width - 12,), 0.3)])
    return torch.randn(tokens, width, generator=generator) * strengths @ mix


def directions_of(x, rank=RANK):
    sketch = {"x": sketch_of(rank)(x) / len(x)}
    squares = {"x": (sum_of_squares(x) / len(x)).float()}
    return find_directions(sketch, squares, rank)["x"]


def test_directions_are_the_eigenvectors_of_the_second_moments():
    x = correlated()
    found = directions_of(x)
    second = (x.double().T @ x.double()) / len(x)
    values, vectors = torch.linalg.eigh(second)
    values, vectors = values.flip(0)[:RANK].float(), vectors.flip(1)[:, :RANK].float()
    torch.testing.assert_close(found.energies, values, rtol=0.25, atol=0)
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(RANK), rtol=0, atol=1e-5)
    assert (found.vectors @ vectors).square().sum() > 0.98 * RANK, "the same subspace"
    whole = found.energies @ found.vectors.square() + found.rest
    torch.testing.assert_close(whole, second.diagonal().float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("width", [8, 12])
def test_narrow_and_degenerate_inputs(width):
    x = torch.zeros(100, width)
    x[:, :3] = correlated(100, 16)[:, :3]
    found = directions_of(x)
    assert found.vectors.shape == (RANK, width)
    assert all(torch.isfinite(part).all() for part in (found.vectors, found.energies, found.rest))
    assert found.energies[3:].max() < 1e-3 * found.energies[0]
    silent = directions_of(torch.zeros(5, width))
    assert not silent.energies.any()
    assert torch.isfinite(silent.vectors).all()


def test_a_model_is_measured_in_one_pass(tiny_model):
    model = hub.load_model(str(tiny_model), dtype=torch.float32)
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    batches = list(torch.randint(500, (4, 3, 40), generator=torch.Generator().manual_seed(0)))
    statistics = {"squares": sum_of_squares, "sketch": sketch_of(4)}
    means = input_statistics.collect(model, names, batches, statistics)
    found = find_directions(means["sketch"], means["squares"], 4)
    assert list(found) == names
    kept = []
    module = model.get_submodule(names[6])
    module.register_forward_pre_hook(lambda m, args: kept.append(args[0].detach().flatten(0, 1)))
    for batch in batches:
        model.eval()(batch)
    expected = directions_of(torch.cat(kept), 4)
    ours = found[names[6]]
    torch.testing.assert_close(ours.energies, expected.energies, rtol=1e-3, atol=1e-6)


def made(grid_name, phi="fp32", rows=48):
    torch.manual_seed(1)
    grid = GRIDS[grid_name]
    linear = nn.Linear(256, rows, bias=False)
    ranges = find_scales(linear.weight, grid, "l2")
    settings = {"grid": grid, "downcast": DOWNCASTS[phi], "rank": RANK, "alpha": 16.0 * RANK}
    return linear, LRQATLinear.from_linear(linear, ranges, **settings)


def output_error(linear, layer, x):
    """Mean square error of each output."""
    return (linear(x) - layer(x)).square().mean(0).detach()


CASES = [("fp32", grid) for grid in KINDS_OF_GRIDS]
CASES += [(phi, "q4_0") for phi in DOWNCASTS if phi != "fp32"]


@pytest.mark.parametrize(("phi", "grid"), CASES)
def test_a_cancels_most_of_the_error_on_other_inputs_too(grid, phi):
    x, other = correlated(), correlated()[:512] + 0.1 * torch.randn(512, 256)
    linear, layer = made(grid, phi)
    nearest = output_error(linear, layer, other)
    initialise(layer, linear.weight.detach(), directions_of(x), LORA_INITS["error"])
    started = output_error(linear, layer, other)
    assert layer.integers().ne(layer.start_integers()).any()
    # Without fractions in Phi0, every weight that moves needs a whole half step.
    assert started.sum() < (0.85 if phi == "int" else 0.7) * nearest.sum()
    # No row is worse by the measure that is minimised; by this one a few are, by little.
    assert (started < 1.3 * nearest).all()
    with round_to_nearest(layer) as elsewhere:
        assert elsewhere
        torch.testing.assert_close(output_error(linear, layer, other), nearest)
    torch.testing.assert_close(output_error(linear, layer, other), started)


def test_b_along_the_inputs_leaves_round_to_nearest():
    linear, layer = made("q3_k")
    random = layer.lora_b.detach().clone()
    initialise(layer, linear.weight.detach(), directions_of(correlated()), LORA_INITS["random"])
    assert torch.equal(layer.lora_b, random)
    initialise(layer, linear.weight.detach(), directions_of(correlated()), LORA_INITS["inputs"])
    assert not layer.lora_a.any()
    assert torch.equal(layer.integers(), layer.start_integers())
    size = layer.lora_b.square().mean().sqrt() / random.square().mean().sqrt()
    assert 0.9 < size < 1.1, "as large as random ones, so that good rates stay good"
    with round_to_nearest(layer) as elsewhere:
        assert not elsewhere


def test_blocks_of_rows_do_not_matter(monkeypatch):
    inputs, results = directions_of(correlated()), []
    for block in (1 << 22, 256 * 5):
        monkeypatch.setattr("lrqat.layers.weight.BLOCK_WEIGHTS", block)
        linear, layer = made("q3_k")
        initialise(layer, linear.weight.detach(), inputs, LORA_INITS["error"])
        results.append(layer.integers())
    assert (results[0] != results[1]).float().mean() < 1e-3, "sums of other lengths round otherwise"
