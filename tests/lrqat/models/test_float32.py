"""A model of 16-bit weights computes in float32 while it is measured, and is unchanged after."""

import copy

import pytest
import torch

from lrqat.models.float32 import in_float32
from lrqat.models.preparation import Settings, prepare
from lrqat.models.surgery import plan_surgery
from tests.support import zoo

IDS = torch.arange(1, 40)[None]
NAMES = ["llama", "llama, tied", "gemma3", "gpt2", "qwen3_moe", "falcon_h1", "mamba"]


@torch.no_grad()
def _logits(model):
    return model(input_ids=IDS, use_cache=False).logits


def _state(model):
    return {name: (p.dtype, p.data_ptr()) for name, p in model.named_parameters()}


def _assert_wide_inside(model, wide):
    narrow, before = _logits(model), _state(model)
    with in_float32(model):
        inside = _logits(model)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, _logits(wide))
    assert not torch.equal(inside, narrow.float())
    assert _state(model) == before
    assert torch.equal(_logits(model), narrow)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_model_in_float32(name):
    model = zoo.make(name).eval().bfloat16()
    _assert_wide_inside(model, copy.deepcopy(model).float())


@pytest.mark.parametrize("name", ["llama, tied", "qwen3_moe"])
def test_a_prepared_model_with_its_embedding_on_a_grid(name):
    source = zoo.make(name).eval().bfloat16()
    grids = {"grid": "q4_0", "embedding_and_head": "q8_0"}
    settings = Settings(range_init="l2", lora_init="random")
    model = prepare(copy.deepcopy(source), plan_surgery(source, **grids), settings)
    wide = prepare(copy.deepcopy(source).float(), plan_surgery(source, **grids), settings)
    with in_float32(model):
        inside = _logits(model)
    assert torch.equal(inside, _logits(wide))


def test_an_error_inside_leaves_the_weights_as_they_were():
    model = zoo.make("llama").eval().bfloat16()
    before = _state(model)
    with pytest.raises(IndexError), in_float32(model):
        model(input_ids=IDS + 10**6)
    assert _state(model) == before
