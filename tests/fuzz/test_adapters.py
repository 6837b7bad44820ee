"""PEFT adapters that nobody vouches for."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from lrqat.models.adapters.merging import Adapters
from tests.fuzz.harness import altered_bytes, altered_json, fuzz, outcome
from tests.support.zoo import make


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


ADAPTER = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "use_rslora": True,
    "rank_pattern": {"q_proj": 2}, "modules_to_save": None,
}  # fmt: skip


@fuzz(10)
@given(data=st.data())
def test_adapters(folder, data):
    model = make("llama")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    pair = {f"{name}A.weight": torch.ones(2, 64), f"{name}B.weight": torch.ones(64, 2)}
    config = data.draw(altered_json([ADAPTER]))
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = data.draw(altered_bytes([save(pair)]))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    outcome(lambda: Adapters.open((str(folder),)).merge(model))
