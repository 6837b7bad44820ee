"""A checkpoint's folder as it is published: what it holds, replaces, and does not say."""

import os

import pytest

from exporters import gguf, onnx
from exporters.gguf.file.header import read_header
from lrqat.atomic_files import folders
from lrqat.checkpoint import manifest
from lrqat.checkpoint.publishing import not_the_checkpoints
from lrqat.checkpoint.reader import Checkpoint
from lrqat.checkpoint.roles import Role
from lrqat.checkpoint.verification import unlisted_files
from lrqat.cli import export
from lrqat.errors import OutputError
from lrqat.models import hub
from tests.support.commands import run as run_tool
from tests.support.published_checkpoints import manifest_of, publish

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture
def named_templates(tokenizer):
    tokenizer.chat_template = {"default": TEMPLATE, "tool_use": TEMPLATE + "tools"}
    return tokenizer


def test_named_templates_are_listed_and_exported_by_every_format(named_templates, tmp_path):
    folder = publish(tmp_path / "fused", named_templates)
    name = "additional_chat_templates/tool_use.jinja"
    assert name in manifest_of(folder)["files"]
    assert (folder / name).parent.stat().st_mode & 0o111
    publish(folder, named_templates)  # over itself
    checkpoint = Checkpoint.open(folder)
    gguf.write(gguf.plan(checkpoint), tmp_path / "a.gguf")
    found = read_header(tmp_path / "a.gguf").metadata
    assert found["tokenizer.chat_template.tool_use"] == TEMPLATE + "tools"
    onnx.write(onnx.plan(checkpoint), tmp_path / "onnx")
    assert (tmp_path / "onnx" / name).read_text() == TEMPLATE + "tools"
    assert hub.load_tokenizer(folder).chat_template == named_templates.chat_template


def test_a_reader_puts_back_what_a_killed_run_had_not_taken_over_yet(
    named_templates, tmp_path, monkeypatch
):
    folder = publish(tmp_path / "fused", named_templates)
    (folder / "model-q4_0.gguf").write_text("exported")
    with monkeypatch.context() as patched:
        patched.setattr(folders, "_carry_over", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            publish(folder, named_templates)
    assert not (folder / "model-q4_0.gguf").exists()
    Checkpoint.open(folder)
    assert (folder / "model-q4_0.gguf").read_text() == "exported"
    assert os.listdir(tmp_path) == ["fused"]


def test_a_new_checkpoint_replaces_the_old_one_and_nothing_else(named_templates, tmp_path):
    folder = publish(tmp_path / "fused", named_templates)
    old = set(manifest.names_in(folder))
    mine = {
        "checkpoints/run.json", "checkpoints/checkpoint-8/state.json", "model-q4_0.gguf",
        "onnx/model.onnx", "onnx/tokenizer.json", "notes.txt", "score.py", "result.json",
    }  # fmt: skip
    stray = {"training.png", "model-00001-of-00002.safetensors", "pytorch_model.bin"}
    stray |= {"added_tokens.json", "additional_chat_templates/more.jinja"}
    for name in mine | stray:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    named_templates.chat_template = None
    minima = {"down_proj": "q4_1"}  # which transformers does not load
    publish(folder, named_templates, grid_for=minima)
    clean = publish(tmp_path / "clean", named_templates, grid_for=minima)
    new = set(manifest.names_in(clean))
    assert "model.safetensors" in old
    assert "model.safetensors" not in new
    assert set(manifest.names_in(folder)) == new | mine
    for name in new:
        assert (folder / name).read_bytes() == (clean / name).read_bytes(), name
    assert not unlisted_files(folder, manifest_of(folder)["files"], Role.MODEL, Role.TEXT)
    assert sorted(os.listdir(tmp_path)) == ["clean", "fused"]


def test_all_that_a_checkpoint_writes_is_its_own(fused_checkpoint):
    """Else a new one would be taken for what is to be kept of an old one."""
    assert not not_the_checkpoints(fused_checkpoint)


def test_no_path_of_this_machine_is_published(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("x")
    training = {
        "model": "owner/name", "data": "data/mine.txt", "teacher": str(tmp_path / "teacher"),
        "imatrix": "../secret/imatrix.gguf", "output": "C:\\Users\\me\\run", "eval_data": None,
        "model_settings": {"teacher_cache": "~/cache"}, "grid_for": [r"down_proj=q6_k"], "steps": 3,
    }  # fmt: skip
    folder = publish(tmp_path / "f", tokenizer, training=training, base_model=str(tmp_path / "b"))
    assert manifest_of(folder)["training"] == {
        "model": "owner/name", "data": "mine.txt", "teacher": "teacher", "imatrix": "imatrix.gguf",
        "output": "run", "eval_data": None, "model_settings": {"teacher_cache": "cache"},
        "grid_for": [r"down_proj=q6_k"], "steps": 3,
    }  # fmt: skip
    assert manifest_of(folder)["base_model"]["name"] == "b"


@pytest.mark.parametrize("name", ["model.safetensors", "lrqat.json", "tokenizer.json/model.gguf"])
def test_an_export_over_a_file_of_its_checkpoint_is_refused(copy, name, capfd):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    command = [str(copy), "--format", "gguf", "--overwrite", "--output", str(copy / name)]
    with pytest.raises(OutputError, match="which writing there could destroy"):
        export.main(command)
    assert before == {path.name: path.read_bytes() for path in copy.iterdir()}


def test_accepting_is_refused_in_a_folder_that_is_no_checkpoint(tiny_model, text_file):
    done = run_tool("evaluate", tiny_model, "--data", text_file, "--accept-changed-tokenizer")
    assert done.returncode == 2
    assert "it has no lrqat.json" in done.stderr
