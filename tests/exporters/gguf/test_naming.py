"""The metadata that hubs show, against gguf-py's reading of the same facts as a model's folder."""

import json

import gguf
import pytest

from exporters.gguf.naming import naming_metadata
from lrqat.cards.card import model_card
from lrqat.checkpoint.reader import Checkpoint

BASE = {"name": "some-org/Tiny-Llama-427K-Instruct-v1.2", "license": "other", "languages": ["en"],
        "license_name": "own", "license_link": "https://example.com/licence"}  # fmt: skip
SAMPLED = {"do_sample": True, "temperature": 0.7, "top_k": 40, "top_p": 0.9}


@pytest.fixture
def checkpoint(fused_checkpoint):
    opened = Checkpoint.open(fused_checkpoint)
    opened.manifest["base_model"] = dict(BASE)
    return opened


def entries(checkpoint):
    return {entry.key: entry.value for entry in naming_metadata(checkpoint)}


def written(metadata):
    """What llama.cpp's converter writes of it."""
    writer = gguf.GGUFWriter(None, "llama")
    metadata.set_gguf_meta_model(writer)
    return {key: value.value for key, value in writer.kv_data[0].items() if "architec" not in key}


def test_the_converter_would_say_the_same_of_the_model(checkpoint, tmp_path, monkeypatch):
    folder = tmp_path / "Tiny-Llama-427K-Instruct-v1.2"
    folder.mkdir()
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: own\nlicense_link: https://example.com/licence\n"
        "pipeline_tag: text-generation\nlanguage:\n- en\n---\n# Tiny\n"
    )
    (folder / "generation_config.json").write_text(json.dumps(SAMPLED))
    monkeypatch.setattr(
        Checkpoint, "file", lambda self, name: folder / name if "generation" in name else None
    )
    theirs = written(gguf.Metadata.load(model_path=folder, total_params=427_000))
    ours = entries(checkpoint)
    assert theirs.pop("general.tags") == ["text-generation"]
    assert {key: ours.get(key) for key in theirs} == theirs
    assert ours["general.size_label"] == "427K"
    assert ours.keys() - theirs.keys() == {
        "general.organization", "general.tags", "general.base_model.count",
        "general.base_model.0.name", "general.base_model.0.organization",
        "general.base_model.0.version", "general.base_model.0.repo_url",
    }  # fmt: skip


def test_the_converter_would_say_the_same_of_its_base_by_our_card(checkpoint, tmp_path):
    (tmp_path / "README.md").write_text(model_card(checkpoint.manifest, []))
    theirs = written(gguf.Metadata.load(model_path=tmp_path, total_params=427_000))
    ours = entries(checkpoint)
    keys = {key for key in theirs if "base_model" in key or "license" in key}
    assert len(keys) == 8
    assert {key: ours[key] for key in keys} == {key: theirs[key] for key in keys}
    assert ours["general.base_model.0.repo_url"] == f"https://huggingface.co/{BASE['name']}"


def test_a_local_model_has_a_size_and_no_base(checkpoint):
    checkpoint.manifest["base_model"] = {"name": "my-model.Q4_1.gguf"}
    found = entries(checkpoint)
    assert found["general.name"] == "My Model"
    assert found["general.size_label"].endswith("K")
    assert not any("base_model" in key or "license" in key for key in found)


@pytest.mark.parametrize("name", [None, 7, "", "x" * 5000, "///", "a/b/c", "\x1b[31m", "-", "💥"])
def test_any_name_is_taken(name, checkpoint):
    checkpoint.manifest["base_model"] = {"name": name, "license": [1], "languages": {"a": 1}}
    assert "general.size_label" in entries(checkpoint)


def test_phi_3_keeps_the_spelling_that_llama_cpp_looks_for(checkpoint):
    checkpoint.manifest["base_model"] = {"name": "microsoft/Phi-3-mini-4k-instruct"}
    assert entries(checkpoint)["general.name"] == "Phi-3-mini-4k-instruct"


@pytest.mark.parametrize(
    "said", [{"temperature": 0.7}, {"do_sample": True, "temperature": "hot", "top_k": -1}]
)
def test_settings_of_no_sampling_are_none(said, checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(said))
    monkeypatch.setattr(Checkpoint, "file", lambda self, name: path)
    assert not any("sampling" in key for key in entries(checkpoint))
