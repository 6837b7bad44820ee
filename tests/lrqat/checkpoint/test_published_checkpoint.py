"""The manifest is the list of what is read; a new checkpoint replaces an old one, and only that."""

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from exporters import gguf
from exporters.gguf.file.header import read_header
from lrqat.checkpoint import manifest
from lrqat.checkpoint.reader import Checkpoint
from lrqat.checkpoint.roles import Role
from lrqat.checkpoint.verification import accept_tokenizer, unlisted_files
from lrqat.cli import export
from lrqat.errors import CheckpointError
from lrqat.models import hub
from tests.support.published_checkpoints import list_again, manifest_of, rewrite_manifest

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


# What is read


def test_weights_that_are_not_listed_are_not_read(copy):
    checkpoint = Checkpoint.open(copy)
    name = checkpoint.floating_names[0]
    before = checkpoint.floating(name)
    save_file({name: before + 1, "more": before}, copy / "model-added.safetensors")
    opened = Checkpoint.open(copy)
    assert opened.floating_names == checkpoint.floating_names
    assert np.array_equal(opened.floating(name), before)


def test_a_tensor_that_two_files_hold_is_refused(copy):
    name = Checkpoint.open(copy).floating_names[0]
    stored = load_file(copy / "model.safetensors")[name]
    save_file({name: stored + 1}, copy / "zzz.safetensors")
    list_again(copy, "zzz.safetensors")
    expected = rf"'{name}' is both in model\.safetensors and in zzz\.safetensors"
    with pytest.raises(CheckpointError, match=expected):
        Checkpoint.open(copy)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../secret", "", ".", "..", "a\\b", "c:x", "a//b"]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(copy, name):
    rewrite_manifest(copy, files=manifest_of(copy)["files"] | {name: {"sha256": "", "bytes": 1}})
    with pytest.raises(CheckpointError, match="not a file name"):
        Checkpoint.open(copy)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors"])
def test_a_link_out_of_the_folder_is_refused_and_one_within_is_not(copy, name):
    (copy / name).rename(copy / "elsewhere")
    (copy / name).symlink_to("elsewhere")
    Checkpoint.open(copy)
    (copy / "elsewhere").rename(copy.parent / "outside")
    (copy / name).unlink()
    (copy / name).symlink_to(copy.parent / "outside")
    with pytest.raises(CheckpointError, match=f"{name} is a link out of the folder.*cp -rL"):
        Checkpoint.open(copy)


def test_a_folder_of_links_out_is_one_too(copy, tmp_path):
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "a.jinja").write_text(TEMPLATE)
    (copy / "additional_chat_templates").symlink_to(tmp_path / "templates")
    with pytest.raises(CheckpointError, match="link out of the folder"):
        accept_tokenizer(copy)


UNLISTED = {
    "chat_template.jinja": TEMPLATE + "evil",
    "additional_chat_templates/evil.jinja": TEMPLATE + "evil",
    "added_tokens.json": '{"evil": 5}',
    "vocab.txt": "evil",
}


def add_unlisted(folder):
    (folder / "additional_chat_templates").mkdir()
    for name, content in UNLISTED.items():
        (folder / name).write_text(content)
    secret = folder.parent / "secret"
    secret.write_text("evil")
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    (folder / "merges.txt").symlink_to(secret)


def test_files_that_are_not_listed_are_in_no_export(copy, tmp_path, capfd):
    add_unlisted(copy)
    made = tmp_path / "onnx"
    assert export.main([str(copy), "--format", "onnx", "--output", str(made)]) == 0
    assert "do not list" not in capfd.readouterr().out
    assert not any("evil" in path.read_text("latin-1") for path in made.rglob("*.j*"))
    assert not {*UNLISTED, "merges.txt"} & set(manifest.names_in(made))
    gguf.write(gguf.plan(Checkpoint.open(copy)), tmp_path / "a.gguf")
    assert not any("chat_template" in key for key in read_header(tmp_path / "a.gguf").metadata)
    tokenizer = hub.load_tokenizer(copy)
    assert not tokenizer.chat_template
    assert len(tokenizer) == 512


def test_files_that_are_not_listed_are_named(copy, tmp_path, capfd):
    add_unlisted(copy)
    assert export.main([str(copy), "--format", "gguf", "--dry-run"]) == 0
    said = capfd.readouterr().err
    for name in (*UNLISTED, "merges.txt", "--accept-changed-tokenizer"):
        assert name in said


def test_a_folder_that_is_replaced_while_it_is_read_gives_no_mixture(copy, tmp_path):
    checkpoint = Checkpoint.open(copy)
    name = checkpoint.floating_names[0]
    shutil.copyfile(copy / "model.safetensors", tmp_path / "other")
    os.replace(tmp_path / "other", copy / "model.safetensors")
    with pytest.raises(CheckpointError, match="replaced or changed while it was read"):
        checkpoint.floating(name)


def test_a_folder_whose_manifest_changes_while_it_is_opened_is_refused(copy, monkeypatch):
    from lrqat.checkpoint import reader

    def replace(folder, files):
        rewrite_manifest(folder, training={"another": "run"})

    monkeypatch.setattr(reader, "verify_files", replace)
    with pytest.raises(CheckpointError, match="replaced while it was read"):
        Checkpoint.open(copy)


# Who may change what


def test_text_for_people_may_change(copy):
    with (copy / "README.md").open("a") as card:
        card.write("More of it.")
    (copy / "LICENSE.md").write_text("mine")
    Checkpoint.open(copy)
    (copy / "README.md").unlink()
    Checkpoint.open(copy)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_weights_and_configuration_may_not_even_when_changes_are_accepted(copy, name):
    with (copy / name).open("ab") as file:
        file.write(b" ")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"{name} has .* bytes.*restore it, or train"):
            Checkpoint.open(copy)
        accept_tokenizer(copy)


def edit_template(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))


def test_a_changed_template_is_named_and_can_be_accepted(copy, capfd, tmp_path):
    edit_template(copy)
    expected = (
        r"tokenizer_config\.json has .*if this change .* is meant.*--accept-changed-tokenizer"
    )
    with pytest.raises(CheckpointError, match=expected):
        Checkpoint.open(copy)
    target = tmp_path / "a.gguf"
    command = [str(copy), "--format", "gguf", "--output", str(target)]
    assert export.main([*command, "--accept-changed-tokenizer"]) == 0
    assert "recorded in" in capfd.readouterr().out
    assert read_header(target).metadata["tokenizer.chat_template"] == TEMPLATE
    assert Checkpoint.open(copy).manifest["accepted"] == ["tokenizer_config.json"]
    assert export.main([*command, "--overwrite"]) == 0, "it is accepted for good"


def test_templates_that_were_added_and_removed_can_be_accepted(copy):
    (copy / "additional_chat_templates").mkdir()
    (copy / "additional_chat_templates" / "tools.jinja").write_text(TEMPLATE)
    (copy / "generation_config.json").unlink()
    taken = ["additional_chat_templates/tools.jinja", "generation_config.json"]
    assert accept_tokenizer(copy) == taken
    checkpoint = Checkpoint.open(copy)
    assert taken[0] in checkpoint.files
    assert taken[1] not in checkpoint.files
    assert hub.load_tokenizer(copy).chat_template == {"tools": TEMPLATE}
    assert accept_tokenizer(copy) == []
    assert Checkpoint.open(copy).manifest == checkpoint.manifest


def test_a_checkpoint_of_before_loads(copy):
    """It lists the files of the folder itself, and not the named templates."""
    (copy / "additional_chat_templates").mkdir()
    (copy / "additional_chat_templates" / "tools.jinja").write_text(TEMPLATE)
    assert manifest_of(copy)["version"] == 1
    assert Checkpoint.open(copy).quantized_names
    names = unlisted_files(copy, manifest_of(copy)["files"], Role.TEXT)
    assert names == ["additional_chat_templates/tools.jinja"]


# What is written
