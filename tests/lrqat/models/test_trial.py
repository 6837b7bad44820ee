"""A model that can be built and not run is refused by the plan, or before anything is measured."""

import pytest
import torch
import transformers as hf

from lrqat.errors import ModelError
from lrqat.models.trial import refuse_unrunnable
from lrqat.training.config import TrainConfig
from lrqat.training.plan import plan_training
from tests.support.zoo import JAMBA, SIZES, make, make_from

CANNOT = r"cannot be run as its config\.json describes it"


def plan_of(model, folder, text_file):
    model.save_pretrained(folder)
    short = {"steps": 1, "sequence_length": 32, "context": 32, "rank": 4}
    return plan_training(
        TrainConfig(model=str(folder), data=str(text_file), output=str(folder / "out"), **short)
    )


def test_layers_that_their_code_does_not_expect_alone(text_file, tmp_path):
    """Jamba looks for the length of its text in the cache of an attention."""
    config = hf.JambaConfig(**SIZES | {"num_hidden_layers": 1}, **JAMBA)
    with pytest.raises(ModelError, match=CANNOT):
        plan_of(make_from(config), tmp_path, text_file)


@pytest.mark.parametrize("wrong", [(1, 7, 7), (3, -1)])
def test_shapes_that_do_not_meet(wrong, monkeypatch, text_file, tmp_path):
    def forward(self, x):
        return x.view(wrong)

    model = make("llama")
    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaMLP.forward", forward)
    with pytest.raises(ModelError, match=f"LlamaForCausalLM {CANNOT}.*invalid for input of size"):
        plan_of(model, tmp_path, text_file)
    with pytest.raises(ModelError, match=CANNOT):
        refuse_unrunnable(model)


def test_a_model_that_can_be_run_is_left_as_it_was():
    model = make("llama")
    before = {name: p.clone() for name, p in model.named_parameters()}
    refuse_unrunnable(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
