"""What a folder's genai_config.json can make ONNX Runtime GenAI do: nothing that it brings."""

import json
import shutil

import pytest

import lrqat
from lrqat.errors import UserError
from lrqat.runtimes import genai
from lrqat.runtimes.genai_config import read_genai_config

pytest.importorskip("onnxruntime_genai")


@pytest.fixture
def folder(onnx_folder, tmp_path):
    return shutil.copytree(onnx_folder("q4_0"), tmp_path / "onnx")


def change(folder, edit):
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


def test_what_we_write_is_taken_whole(folder):
    config, left_out = read_genai_config(folder)
    assert config == json.loads((folder / "genai_config.json").read_text())
    assert not left_out


def test_a_native_library_that_a_folder_brings_is_not_loaded(folder, tmp_path):
    """onnxruntime-genai itself would load it: the control shows that it tries."""
    import onnxruntime_genai

    def bring(config):
        options = config["model"]["decoder"]["session_options"]
        options["custom_ops_library"] = "custom_ops.so"
        options["enable_profiling"] = str(tmp_path / "profile")
        config["model"]["vision"] = {"filename": "other.onnx"}

    (folder / "custom_ops.so").write_bytes(b"native code")
    expected = genai.generate(folder, "def ", 4)
    change(folder, bring)
    with pytest.raises(RuntimeError, match=r"custom_ops|vision|library"):
        onnxruntime_genai.Model(str(folder))
    with pytest.warns(UserWarning, match="custom_ops_library") as said:
        assert genai.generate(folder, "def ", 4) == expected
    assert "model.vision" in str(said[0].message)
    assert not list(tmp_path.glob("profile*"))


def test_entries_of_the_session_are_those_that_say_how_to_compute(folder, text, monkeypatch):
    import onnxruntime

    given = []
    add = onnxruntime.SessionOptions.add_session_config_entry
    monkeypatch.setattr(
        onnxruntime.SessionOptions,
        "add_session_config_entry",
        lambda self, key, value: (given.append(key), add(self, key, value)),
    )

    def more(config):
        options = config["model"]["decoder"]["session_options"]
        options["session.model_external_initializers_file_folder_path"] = "/etc"

    change(folder, more)
    lrqat.onnx_perplexity(folder, text[:4000], context=64, limit=1)
    assert given == ["session.qdq_matmulnbits_accuracy_level"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("filename", "../other.onnx"), ("head_size", "32"), ("inputs", 3), ("num_hidden_layers", -1)],
)
def test_a_value_of_another_form_is_refused(folder, key, value):
    change(folder, lambda config: config["model"]["decoder"].update({key: value}))
    with pytest.raises(UserError, match=rf"model\.decoder\.{key}"):
        genai.continue_tokens(folder, [1, 2, 3], 2)
