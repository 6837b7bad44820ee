"""Runtimes stop at the ends of the tokenizer and of generation_config.json."""

import json
import shutil

import pytest

from exporters import gguf, onnx
from exporters.end_tokens import end_tokens, one_or_list
from exporters.gguf.vocabulary.files import TokenizerFiles
from exporters.gguf.vocabulary.special_ids import special_ids
from exporters.onnx.folder.companions import genai_config
from lrqat.checkpoint.reader import Checkpoint
from lrqat.models import hub

TURN = {"id": 511, "content": "<turn_over>", "special": True}


@pytest.fixture
def folder(tmp_path):
    """Function of what each file says -> folder."""

    def make(generation=None, eos="<turn_over>", added=(TURN,), vocab=None, decoder=None):
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        settings = {"eos_token": eos, "added_tokens_decoder": decoder or {}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer = {"added_tokens": list(added), "model": {"vocab": vocab or {"<end>": 3}}}
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"generation": {"eos_token_id": 3}}, [3, 511]),
        ({"generation": {"eos_token_id": [3, 7]}}, [3, 7, 511]),
        ({"generation": {"eos_token_id": 511}}, [511]),
        ({"generation": {}}, [9, 511]),  # config.json's
        ({"generation": {"eos_token_id": 3}, "eos": {"content": "<turn_over>"}}, [3, 511]),
        ({"generation": {"eos_token_id": 7}, "eos": "<end>"}, [7, 3]),
        ({"generation": {"eos_token_id": 7}, "eos": None}, [7]),
        ({"generation": {"eos_token_id": 7}, "eos": "nowhere"}, [7]),
        ({"eos": "x", "added": (), "decoder": {"12": {"content": "x"}}}, [9, 12]),
        ({"generation": {"eos_token_id": [True, "3", -1]}}, [511]),
    ],
)
def test_the_ends_are_those_of_both_files(folder, said, expected):
    assert end_tokens(folder(**said), {"eos_token_id": 9}) == expected


def test_a_folder_without_files_has_the_configurations(tmp_path):
    assert end_tokens(tmp_path, {"eos_token_id": [9, 4]}) == [9, 4]
    assert end_tokens(tmp_path, {}) == []
    assert (one_or_list([9]), one_or_list([9, 4])) == (9, [9, 4])


@pytest.fixture
def chat(make_fused, tmp_path):
    """A checkpoint whose tokenizer ends at another token than its generation_config.json."""
    copy = shutil.copytree(make_fused("q4_0"), tmp_path / "chat")
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    vocab = json.loads((copy / "tokenizer.json").read_text())["model"]["vocab"]
    text = next(text for text, token_id in vocab.items() if token_id == 300)
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": text}))
    return Checkpoint.open(copy, verify=False)


def test_genai_config_lists_both(chat, tiny_model):
    made = genai_config(onnx.plan(chat), hub.load_config(str(tiny_model)))
    assert made["model"]["eos_token_id"] == [0, 300]


def test_gguf_has_both(chat):
    keys = {entry.key: entry.value for entry in gguf.plan(chat).metadata}
    assert keys["tokenizer.ggml.eos_token_id"] == 300


def test_gguf_takes_the_end_of_generation_config_if_nothing_else_names_one(folder):
    path = folder(generation={"eos_token_id": [511, 3]}, eos=None)
    found, notes = special_ids(TokenizerFiles.open(path, {}))
    assert (found["eos"], found["eot"]) == (511, 3)
    assert notes == []
