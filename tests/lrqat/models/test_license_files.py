"""Licences of the base model: which are taken along, and where they come to lie."""

import os

import pytest
from huggingface_hub.constants import HF_HUB_OFFLINE

from exporters import gguf
from lrqat.checkpoint.reader import Checkpoint
from lrqat.models.license_files import license_files
from lrqat.publication.plan import plan_publication
from tests.support.published_checkpoints import manifest_of, publish, rewrite_manifest
from tests.support.published_checkpoints import tokenizer as tokenizer

TEXTS = {"LICENSE": b"free\n", "NOTICE.txt": b"by somebody", "USE_POLICY.md": b"# Be good"}


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_bytes(text)
    return folder


def test_only_plain_small_texts_of_the_folder_are_taken(base, tmp_path):
    (tmp_path / "secret").write_text("mine")
    (base / "LICENSE.secret").symlink_to(tmp_path / "secret")
    (base / "LICENSE.twice").symlink_to(base / "LICENSE")
    (base / "LICENSE.large").write_bytes(b"x" * (1 << 18 | 1))
    (base / "LICENSE.bin").write_bytes(b"\xff\xfe")
    (base / "LICENSE name").write_text("x")
    (base / "LICENSES").mkdir()
    (base / "model.safetensors").write_text("x")
    os.mkfifo(base / "NOTICE")
    assert license_files(str(base)) == TEXTS | {"LICENSE.twice": TEXTS["LICENSE"]}
    for i in range(40):
        (base / f"LICENSE-{i}").write_text("x")
    assert len(license_files(str(base))) == 16


def test_a_snapshot_of_the_hub_links_to_its_blobs(tmp_path):
    snapshot = tmp_path / "models--me--tiny" / "snapshots" / "1234"
    blobs = tmp_path / "models--me--tiny" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text("free")
    (snapshot / "LICENSE").symlink_to("../../blobs/abc")
    (snapshot / "NOTICE").symlink_to("/etc/hostname")
    assert license_files(str(snapshot)) == {"LICENSE": b"free"}


@pytest.mark.skipif(not HF_HUB_OFFLINE, reason="would ask the hub")
def test_a_repository_that_cannot_be_asked_has_none():
    assert license_files("nobody/nothing") == {}


def test_they_lie_in_the_checkpoint_and_go_with_whatever_is_published(base, tokenizer, tmp_path):
    folder = publish(tmp_path / "fused", tokenizer, licenses=license_files(str(base)))
    listed = manifest_of(folder)["files"]
    for name, text in TEXTS.items():
        assert (folder / name).read_bytes() == text
        assert listed[name]["bytes"] == len(text)
    rewrite_manifest(folder, base_model=manifest_of(folder)["base_model"] | {"license": "mit"})
    file = folder / "tiny.gguf"
    gguf.write(gguf.plan(Checkpoint.open(folder)), file)
    for given in (folder, file):
        found = plan_publication([given], "me/tiny").files
        assert {name: found[name].read_bytes() for name in TEXTS} == TEXTS
