"""Configurations, tokenizers and lrqat.json that nobody vouches for."""

import json
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from exporters.gguf.metadata import vocabulary_metadata
from lrqat.checkpoint import manifest
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import CheckpointError, ModelError, UserError
from lrqat.models import hub
from tests.fuzz.harness import altered_bytes, altered_json, fuzz, limited, outcome

ANY = st.data()
# Families whose configurations are built differently: parts, experts, other attention, other names.
FAMILIES = ("llama", "gpt2", "gemma3_text", "qwen3_moe", "phi3", "mamba2", "gemma3", "opt", "bloom")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def small(family):
    """config.json of a family, with sizes that take no time to build."""
    values = AutoConfig.for_model(family).to_dict() | {"architectures": ["X"]}
    text = values.get("text_config", values)
    for key in ("num_hidden_layers", "n_layer", "num_experts"):
        if key in text:
            text[key] = 2
    values.pop("layer_types", None)
    text.pop("layer_types", None)
    return json.loads(json.dumps(values, default=str))


@fuzz(10)
@given(data=ANY)
def test_configurations(folder, data):
    config = data.draw(altered_json([small(data.draw(st.sampled_from(FAMILIES)))]))
    (folder / "config.json").write_text(json.dumps(config))
    outcome(lambda: hub.meta_model(hub.load_config(str(folder))))


@fuzz(25)
@given(data=ANY)
def test_bytes_of_configurations(folder, data):
    good = json.dumps(small("llama")).encode()
    (folder / "config.json").write_bytes(data.draw(altered_bytes([good])))
    outcome(lambda: hub.load_config(str(folder)))


@pytest.fixture(scope="module")
def tokenizer_folder(tiny_model, folder):
    return shutil.copytree(tiny_model, folder / "tokenizer")


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@fuzz(20)
@given(data=ANY)
def test_tokenizers(tokenizer_folder, tiny_model, data):
    name = data.draw(st.sampled_from(TOKENIZER_FILES))
    value = data.draw(altered_json([json.loads((tiny_model / name).read_text())]))
    (tokenizer_folder / name).write_text(json.dumps(value))
    outcome(lambda: hub.load_tokenizer(tokenizer_folder).encode("a text"))
    shutil.copy(tiny_model / name, tokenizer_folder)


@pytest.fixture(scope="module")
def checkpoint(make_small, folder):
    return shutil.copytree(make_small("q4_0").path, folder / "fused")


def contents(path):
    """Everything that a checkpoint's reader gives."""
    opened = Checkpoint.open(path)
    for name in opened.quantized_names:
        opened.quantized(name).dequantize()
    return [opened.floating(name) for name in opened.floating_names]


@fuzz(50)
@given(data=ANY)
def test_manifests(checkpoint, data):
    path = checkpoint / manifest.FILE_NAME
    good = path.read_bytes()
    try:
        path.write_text(json.dumps(data.draw(altered_json([json.loads(good)]))))
        outcome(lambda: contents(checkpoint))
    finally:
        path.write_bytes(good)


@fuzz(20)
@given(data=ANY)
def test_vocabularies_of_checkpoints(checkpoint, data):
    """What lrqat.json accepts, an export reads."""
    path = checkpoint / "tokenizer.json"
    good = path.read_bytes()
    opened = Checkpoint.open(checkpoint)
    try:
        path.write_text(json.dumps(data.draw(altered_json([json.loads(good)]))))
        outcome(lambda: vocabulary_metadata(opened, None))
    finally:
        path.write_bytes(good)


@fuzz(15)
@given(data=ANY)
def test_no_altered_weights_are_read(checkpoint, data):
    path = next(checkpoint.glob("*.safetensors"))
    good = path.read_bytes()
    try:
        path.write_bytes(altered := data.draw(altered_bytes([good])))
        found = outcome(lambda: contents(checkpoint))
        assert altered == good or isinstance(found, CheckpointError)
    finally:
        path.write_bytes(good)


ABSURD = {
    "layers": {"num_hidden_layers": 10**7},
    "layers of experts": {"num_hidden_layers": 1000, "num_local_experts": 10**6},
    "labels": {"num_labels": 10**9},
    "an integer of 4,300 digits": {"hidden_size": 10**4299},
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_sizes_are_refused_at_once(name, tmp_path):
    text = json.dumps(small("llama") | dict.fromkeys(ABSURD[name], 0))
    for key, value in ABSURD[name].items():
        digits = str(value) if value < 10**100 else "1" * 4300
        text = text.replace(f'"{key}": 0', f'"{key}": {digits}')
    (tmp_path / "config.json").write_text(text)
    with limited(), pytest.raises(UserError):
        hub.load_config(str(tmp_path))


def test_json_of_ten_million_keys_is_refused_at_once(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"a":0' + b',"a":0' * 10**7 + b"}")
    with limited(), pytest.raises(UserError, match=r"more than|millions"):
        hub.load_config(str(tmp_path))


def test_json_nested_too_deeply_is_refused(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"a":' + b"[" * 10**6)
    with pytest.raises(UserError, match="nested too deeply"):
        hub.load_config(str(tmp_path))


@pytest.mark.parametrize("asked", ["flash_attention_2", "flash_attention_3", "somebody/kernel", 5])
def test_an_attention_that_is_not_transformers_own_is_replaced(asked, tmp_path):
    """FlashAttention of where the model was trained; or a kernel to fetch from the hub and run."""
    config = small("llama") | {"_attn_implementation": asked}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = hub.load_config(str(tmp_path))
    assert found._attn_implementation is None
    assert hub.meta_model(found).config._attn_implementation == "sdpa"


WRONG = {
    "a padding token beyond the table": {"pad_token_id": 10**6},
    "an integer where a float is wanted": {"rms_norm_eps": 0},
    "heads that do not divide": {"num_attention_heads": 5, "num_key_value_heads": 5},
    "no context": {"max_position_embeddings": None},
    "an activation that is unknown": {"hidden_act": "swishy"},
    "a rope type that is unknown": {"rope_parameters": {"rope_type": "foo", "rope_theta": 10000.0}},
    "a type that is no name": {"model_type": ["llama"]},
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_transformers_or_torch_refuses_is_one_message(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(small("llama") | WRONG[name]))
    with pytest.raises(ModelError, match=r"config\.json"):
        hub.meta_model(hub.load_config(str(tmp_path)))


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", ["auto", "float8_e4m3fn", "int8"])
def test_a_type_that_no_weights_are_stored_in_is_named(key, dtype, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(without_type("llama") | {key: dtype}))
    with pytest.raises(ModelError, match=f"weights are '{dtype}', which is none of float32"):
        hub.load_config(str(tmp_path))


def without_type(family):
    return {key: value for key, value in small(family).items() if key != "dtype"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "model.safetensors"])
def test_nobody_waits_for_a_pipe_in_a_model_folder(name, tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    for load in (hub.load_config, hub.load_tokenizer):
        with pytest.raises(UserError, match="neither a file nor a folder"):
            load(str(model))
