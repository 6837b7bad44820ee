"""What bounds a difference of logits: measured noise, which faults exceed by orders."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch

from lrqat.activations.grids import quantize
from lrqat.activations.table import ACTIVATION_GRIDS
from lrqat.evaluation.perplexity import Windows, compare
from lrqat.models.reference import torch_logits
from lrqat.runtimes.bounds import RuntimeCheck, check_graph, reordered
from lrqat.runtimes.products import computed_by, in_another_order
from tests.support import zoo

TOKENS = np.random.default_rng(0).integers(1, zoo.VOCABULARY, (3, 64))
TOKENS[:, 0] = 0  # where a model with outliers has them
F = torch.nn.functional


@pytest.fixture(scope="module")
def model():
    return zoo.with_outliers(zoo.make("llama").eval())


@contextlib.contextmanager
def changed(tensor, change):
    """A tensor of a model after `change`, and as it was."""
    before = tensor.detach().clone()
    with torch.no_grad():
        change(tensor)
    try:
        yield
    finally:
        with torch.no_grad():
            tensor.copy_(before)


def logits_with(model, tensor, change):
    ours = torch_logits(model)

    def logits(tokens):
        with changed(tensor, change):
            return ours(tokens)

    return logits


@pytest.mark.parametrize("name", ["llama", "llama, tied", "gpt2", "qwen3_moe", "gemma2"])
def test_another_order_changes_last_bits_of_every_product(name):
    model = zoo.make(name).eval()
    seen = []

    def counted(x, weight, bias):
        seen.append(weight.shape)
        return in_another_order(1)(x, weight, bias)

    ours = torch_logits(model)
    with computed_by(counted):
        other = ours(TOKENS[0])
    found = np.abs(other - ours(TOKENS[0])).max()
    assert 0 < found < 1e-4 * np.abs(other).max()
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    assert len(seen) >= len(matrices) // 2, "experts and tied heads are among them too"


def test_the_model_has_outliers(model):
    kept = []
    hook = model.model.layers[-1].register_forward_hook(lambda m, a, out: kept.append(out))
    logits = torch_logits(model)(TOKENS[0])
    hook.remove()
    stream = kept[0] if torch.is_tensor(kept[0]) else kept[0][0]
    first, rest = stream[0, 0].abs().max(), stream[0, 1:].abs().max()
    assert first > 20 * rest
    assert 25 < np.abs(logits).max() < 100


def test_a_computation_in_a_third_order_holds(model):
    ours = torch_logits(model)
    check = check_graph(ours, reordered(ours, seed=3), list(TOKENS))
    assert check.holds
    assert check.noise.largest > 1e-6


def halve(tensor):
    tensor[0, :32] *= 0.5  # one scale of one row


def permute(tensor):
    tensor[:] = tensor[torch.arange(len(tensor)).view(-1, 2).flip(1).flatten()]


def lose_offset(tensor):
    tensor -= 1


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (halve, "model.layers.1.mlp.up_proj.weight"),
        (permute, "model.layers.0.self_attn.k_proj.weight"),
        (lose_offset, "model.layers.1.input_layernorm.weight"),
    ],
)
def test_planted_faults_fail_by_orders(change, place, model):
    ours = torch_logits(model)
    wrong = logits_with(model, model.get_parameter(place), change)
    check = check_graph(ours, wrong, list(TOKENS))
    assert not check.holds
    assert check.found.rms > 100 * check.bound.rms
    assert "graph is not the model's" in check.reason


def test_nan_never_holds(model):
    ours = torch_logits(model)

    def broken(tokens):
        logits = ours(tokens).copy()
        logits[5, 7] = np.nan
        return logits

    assert not check_graph(ours, broken, list(TOKENS)).holds


def rounding(logits, share=1.0):
    """`logits` with activations rounded as under Q8_0; a `share` of each product is not."""
    grid = ACTIVATION_GRIDS["q8_0"]

    def product(x, weight, bias):
        if x.shape[-1] % 32:
            return F.linear(x, weight, bias)
        return F.linear(x + share * (quantize(x, grid) - x), weight, bias)

    def rounded(tokens):
        with computed_by(product):
            return logits(tokens)

    return rounded


def test_two_draws_of_the_same_rounding_hold_and_a_coarser_one_does_not(model):
    ours = torch_logits(model)
    windows = Windows(TOKENS, TOKENS.shape[1])
    simulated = compare(ours, reordered(rounding(ours), seed=1), windows)
    found = compare(ours, reordered(rounding(ours), seed=2), windows)
    check = RuntimeCheck(found, simulated, rounds=True)
    assert check.holds
    assert found.kl > 0
    coarser = compare(ours, rounding(ours, share=4.0), windows)
    wrong = dataclasses.replace(check, found=coarser)
    assert not wrong.holds
    assert "rounding of activations explains" in wrong.reason


def test_without_rounding_the_bound_is_that_of_summation(model):
    ours = torch_logits(model)
    windows = Windows(TOKENS, TOKENS.shape[1])
    simulated = compare(ours, reordered(ours, seed=1), windows)
    check = RuntimeCheck(compare(ours, reordered(ours, seed=2), windows), simulated, rounds=False)
    assert check.holds
    assert check.kl_bound < 1e-7
    rounded = compare(ours, rounding(ours), windows)
    assert not dataclasses.replace(check, found=rounded).holds
