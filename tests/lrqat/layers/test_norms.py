"""Norms that are trained: in float32, computing as they will be stored."""

import pytest
import torch
from torch import nn

from lrqat.layers.norms import gain_of, settle_norms, thaw_norms, thawed_norms, trainable_norms
from lrqat.models.float32 import in_float32
from lrqat.models.hidden_states import decoder
from lrqat.training.states.sharding import fill, skeleton
from tests.support.zoo import MODELS, make


class GemmaNorm(nn.Module):
    """Multiplies by 1 + w, as Gemma's do."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return x * (1 + self.weight) / x.square().mean(-1, keepdim=True).sqrt()


class GatedNorm(nn.RMSNorm):
    def forward(self, x, gate):
        return super().forward(x) * gate


def test_the_gain_is_what_a_norm_multiplies_by():
    rms, layer = nn.RMSNorm(8, eps=0.0), nn.LayerNorm(8, eps=0.0)
    with torch.no_grad():
        rms.weight.copy_(torch.linspace(-1, 2, 8))
        layer.weight.copy_(rms.weight)
        layer.bias.fill_(7.0)
    wanted = pytest.approx(float(rms.weight.detach().abs().mean()), rel=1e-5)
    assert gain_of(rms) == wanted
    assert gain_of(layer) == wanted
    assert gain_of(GemmaNorm(torch.zeros(8))) == pytest.approx(1.0)
    assert gain_of(GatedNorm(8)) == 0


@pytest.mark.parametrize("name", MODELS)
def test_thawing_changes_no_output_and_all_norms_of_the_text_are_trained(name):
    model = make(name).bfloat16().eval()
    tokens = torch.arange(12)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        before = model(input_ids=tokens).logits
    names = set(trainable_norms(decoder(model)))
    thaw_norms(decoder(model))
    thaw_norms(decoder(model))
    found = {own.replace("parametrizations.", "").removesuffix(".original"): parameter
             for own, parameter, _ in thawed_norms(decoder(model))}  # fmt: skip
    assert found.keys() == names
    assert all(p.dtype == torch.float32 and p.requires_grad for p in found.values())
    logits = model(input_ids=tokens).logits
    assert torch.equal(logits, before)
    logits.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in found.values())


def test_a_trained_norm_computes_as_it_will_be_stored():
    model = make("llama").bfloat16().eval()
    tokens = torch.arange(12)[None]
    nn.init.ones_(model.model.norm.weight)
    thaw_norms(decoder(model))
    with torch.no_grad():
        for _, parameter, _ in thawed_norms(model):
            parameter.mul_(1.0 + 1e-4)  # less than half a step of bfloat16 from 1
            parameter[::2] *= 1.1
        with in_float32(model):
            trained = model(input_ids=tokens).logits
        settle_norms(model)
        assert not list(thawed_norms(model))
        assert all(norm.dtype == torch.bfloat16 for norm in trainable_norms(model).values())
        assert model.model.norm.weight[1] == 1
        assert model.model.norm.weight[0] == torch.tensor(1.1).bfloat16()
        assert torch.equal(model.float()(input_ids=tokens).logits, trained)


def test_a_copy_without_values_is_filled_again():
    """As FSDP's whole model is made of its shards."""
    model = make("gpt2").eval()
    tokens = torch.arange(12)[None]
    thaw_norms(decoder(model))
    bare = skeleton(model)
    with torch.no_grad():
        for _, parameter, _ in thawed_norms(model):
            parameter.mul_(1.5)
        assert torch.equal(fill(bare, model)(tokens).logits, model(tokens).logits)
