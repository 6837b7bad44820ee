"""The language model inside a model of images and text: the same logits, and no tower."""

import json

import pytest
import torch

from lrqat.errors import ModelError
from lrqat.models import hub
from lrqat.models.nested import text_folder
from tests.support.nested import NESTED, TOKENS, nested_model


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def nested(tiny_model, tmp_path):
    """Function name -> a random model of images and text, and its folder."""
    return lambda name: nested_model(name, tiny_model, tmp_path / name)


@torch.no_grad()
@pytest.mark.parametrize("name", NESTED)
def test_it_has_the_logits_of_the_whole(nested, name):
    whole, folder = nested(name)
    found = text_folder(folder)
    text = hub.load_model(str(found), dtype=torch.float32)
    assert type(text).__name__.endswith("ForCausalLM")
    assert text.config.get_text_config() is text.config
    assert not [n for n, _ in text.named_parameters() if "vis" in n]
    torch.testing.assert_close(text(TOKENS).logits, whole(input_ids=TOKENS).logits)
    assert hub.load_tokenizer(found).get_vocab() == hub.load_tokenizer(folder).get_vocab()
    assert text_folder(folder) == found
    said = json.loads((found / "config.json").read_text())
    assert "mrope_section" not in said.get("rope_parameters", {})
    assert said["vocab_size"] == len(hub.load_tokenizer(folder))


def test_a_changed_model_is_read_anew(nested):
    _, folder = nested("mistral3")
    first = text_folder(folder)
    nested("mistral3")
    assert text_folder(folder) != first


def test_what_has_no_text_model_inside_is_refused(nested, tiny_model):
    with pytest.raises(ModelError, match="is a text model itself; leave --text-model out"):
        text_folder(str(tiny_model))
    _, folder = nested("qwen3_vl")
    with pytest.raises(ModelError, match=r"'qwen3_vl' model .*; give --text-model for"):
        hub.load_config(folder)
