"""The split of a model at its output head: on real architectures, and where it must not be."""

import contextlib
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lrqat.grids.grid import GRIDS
from lrqat.init.range_init import find_scales
from lrqat.layers.frozen import DOWNCASTS
from lrqat.layers.linear import LRQATLinear
from lrqat.layers.modes import evaluating, full_precision
from lrqat.models.split import split, split_or_whole
from lrqat.training.objectives import chunks
from lrqat.training.objectives.losses import Objective, SelfTeacher
from tests.support.whole_losses import assert_same, gradients, make, text, whole_loss
from tests.support.zoo import FOR_LOSSES, SIZES, VOCABULARY


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 64 tokens, so that 140 positions make two whole ones and a part of one."""
    monkeypatch.setattr(chunks, "_CHUNK_BYTES", 1)


@pytest.mark.parametrize("name", FOR_LOSSES)
def test_every_architecture_splits_and_its_loss_and_gradients_are_the_whole_ones(
    name, small_chunks
):
    model, input_ids = make(name), text()
    assert split(model, input_ids) is not None
    assert_same(model, Objective()(model, input_ids), whole_loss(model, input_ids))


class Doubled(LlamaForCausalLM):
    """A model that does something with its logits that no table knows."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 2 * output.logits
        return output


class Capped(LlamaForCausalLM):
    """One whose logits are so small that its soft cap does not show in them."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 30 * torch.tanh(output.logits / 30)
        return output


@pytest.mark.parametrize("kind", [Doubled, Capped])
def test_a_head_that_disagrees_is_found_and_the_loss_is_right_all_the_same(kind, small_chunks):
    torch.manual_seed(0)
    model, input_ids = kind(LlamaConfig(**SIZES, initializer_range=1e-3)), text()
    assert split(model, input_ids) is None
    model.double()
    with pytest.warns(UserWarning, match=f"{kind.__name__} computes its logits in a way"):
        loss = Objective()(model, input_ids)
    assert_same(model, loss, whole_loss(model, input_ids))


def test_a_head_that_borrows_a_trained_parameter_is_not_split():
    """Its gradient would be lost: it is not among the head's parameters."""

    class Borrowing(nn.Linear):
        def forward(self, x):
            return super().forward(x) * self.factor[0]

    model, input_ids = make("llama"), text()
    head = Borrowing(SIZES["hidden_size"], VOCABULARY, bias=False).double()
    head.factor = [nn.Parameter(torch.tensor(2.0, dtype=torch.float64))]
    model.set_output_embeddings(head)
    assert split(model, input_ids) is None
    head.factor[0].requires_grad_(False)
    assert split(model, input_ids) is not None


def test_a_model_that_splits_is_not_warned_about_and_is_left_in_its_mode():
    model, input_ids = make("llama").train(), text()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not split_or_whole(model, input_ids).whole
    assert [module.training for module in model.modules()] == before
    assert not model.lm_head._forward_hooks


def test_a_trained_low_rank_head_is_split_and_gets_its_gradients(small_chunks):
    """A head that is a module of several trained parameters, as a quantised one would be."""

    class LowRank(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.register_buffer("base", linear.weight.detach().clone())
            self.a = nn.Parameter(torch.randn(VOCABULARY, 2, dtype=torch.float64))
            self.b = nn.Parameter(torch.randn(2, SIZES["hidden_size"], dtype=torch.float64))

        def forward(self, x):
            return F.linear(x, self.base + self.a @ self.b)

    model, input_ids = make("gemma2, low caps"), text()
    model.set_output_embeddings(LowRank(model.get_output_embeddings()))
    assert len(split(model, input_ids).trained()) == 2
    assert_same(model, Objective()(model, input_ids), whole_loss(model, input_ids))


@pytest.mark.parametrize("trained", [True, False])
def test_a_head_on_a_grid_is_built_once_for_all_chunks(trained, small_chunks, monkeypatch):
    model, input_ids = make("llama").float(), text()
    with torch.no_grad():
        taught = model(input_ids=input_ids).logits
    model.lm_head = layer = on_a_grid(model.lm_head, trained)
    objective = Objective(SelfTeacher(full_precision))
    expected = whole_loss(model, input_ids, taught, 0.0)
    objective(model, input_ids)  # the split is tried
    built = []
    for name in ("write_weight", "original"):
        monkeypatch.setattr(layer, name, counting(getattr(layer, name), built))
    found = objective(model, input_ids)
    assert sorted(built) == ["original", "write_weight"]
    torch.testing.assert_close(found, expected)
    ours, theirs = gradients(model, found), gradients(model, expected)
    assert ours.keys() == theirs.keys()
    assert trained == ("lm_head.scale" in ours)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def on_a_grid(head, trained):
    grid = GRIDS["q4_0"]
    settings = {"grid": grid, "downcast": DOWNCASTS["fp32"], "rank": 2, "alpha": 2.0}
    made = LRQATLinear.from_linear(head, find_scales(head.weight, grid, "minmax"), **settings)
    nn.init.normal_(made.lora_a, std=0.3)
    for parameter in made.trained().values():
        parameter.requires_grad_(trained)
    return made


def counting(method, calls):
    def counted(*args):
        calls.append(method.__name__)
        return method(*args)

    return counted


def test_evaluating_restores_every_module_after_an_error():
    model = make("llama").train()
    model.lm_head.eval()
    before = [module.training for module in model.modules()]
    with contextlib.suppress(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == before
