"""What cannot become an ONNX graph is refused by the plan, and with the reason."""

import json
import re

import pytest

from exporters import onnx
from exporters.onnx.folder.loadable import remedy
from exporters.onnx.tracing.probe import CacheShape, probe
from lrqat.architectures import GENAI_TYPES
from lrqat.errors import ExportRefusedError
from tests.support.checkpoints import fused
from tests.support.onnx_exports import write_onnx
from tests.support.zoo import CONFIGS, IN_ONNX, NOT_IN_ONNX


def config_of(name):
    return json.loads(CONFIGS[name]().to_json_string())


@pytest.mark.parametrize("name", NOT_IN_ONNX)
def test_the_reason_is_what_the_model_lacks(name):
    found = probe(config_of(name))
    assert found.cache is None
    assert re.search(NOT_IN_ONNX[name], found.reason), found.reason
    assert "export to GGUF" in found.reason


@pytest.mark.parametrize("name", IN_ONNX)
def test_what_becomes_a_graph_is_not_refused(name):
    config = CONFIGS[name]()
    found = probe(config_of(name))
    assert found.reason is None
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    assert found.cache == CacheShape(config.num_hidden_layers, heads, size)


def test_a_padding_token_is_no_reason_to_refuse():
    """transformers looks for it among the tokens, which have no values here."""
    assert probe(config_of("gpt2") | {"pad_token_id": 0}).cache == CacheShape(2, 4, 16)


def test_the_cache_is_the_models_where_its_configuration_does_not_say():
    """Falcon's has no number of key-value heads, only `multi_query`; and torch has no such node."""
    config = config_of("falcon, one key-value head")
    assert probe(config, "products").cache == CacheShape(2, 1, 16)
    found = probe(config)
    assert found.cache is None
    assert found.reason is not None
    assert "use --attention products" in found.reason


def test_a_layer_that_is_used_twice_is_refused(monkeypatch):
    def forward(self, x):
        return self.down_proj(self.up_proj(x)) + self.down_proj(self.gate_proj(x))

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaMLP.forward", forward)
    found = probe(config_of("llama") | {"rms_norm_eps": 2e-6})  # no other test has looked at it
    assert found.reason is not None
    assert "uses model.layers.0.mlp.down_proj 2 times" in found.reason


def test_an_old_onnx_runtime_is_to_be_replaced_and_a_new_one_is_not():
    assert "install onnxruntime 1.26" in remedy("1.24.3")
    for installed in ("1.26.0", "1.32.0", "2.0.0.dev20261101"):
        assert "install" not in remedy(installed)


def test_a_configuration_that_no_model_can_be_built_from_is_refused():
    values = config_of("llama") | {"hidden_act": "no such function"}
    assert "transformers cannot build its model" in probe(values).reason


@pytest.mark.parametrize("name", ["lfm2", "gpt_oss", "mamba"])
def test_the_plan_refuses_and_nothing_is_written(name, tmp_path):
    made = onnx.plan(fused(name, tmp_path / "fused", keep=(), grid_for={}))
    assert len(made.refusals) == 1
    assert made.refusals[0] == probe(config_of(name)).reason
    with pytest.raises(ExportRefusedError, match="would not be exact"):
        onnx.write(made, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_every_expert_is_refused_in_one_sentence(tmp_path):
    made = onnx.plan(fused("qwen3_moe", tmp_path / "fused", keep=(), grid_for={}))
    assert len(made.refusals) == 1
    assert "mlp.experts is a stack of experts" in made.refusals[0]


def test_a_folder_that_genai_refuses_has_no_configuration_for_it(tmp_path):
    assert "opt" not in GENAI_TYPES
    checkpoint = fused("opt", tmp_path / "fused", keep=(), grid_for={})
    made = onnx.plan(checkpoint)
    said = "no genai_config.json: ONNX Runtime GenAI does not take the model"
    assert any(note.startswith(said) and "no opt" in note for note in made.notes)
    report = write_onnx(made, tmp_path / "onnx")
    assert any(note.startswith(said) for note in report.notes)
    assert not (tmp_path / "onnx" / "genai_config.json").exists()
    assert "ONNX Runtime GenAI does not take this model" in (
        tmp_path / "onnx" / "README.md"
    ).read_text(encoding="utf-8")
