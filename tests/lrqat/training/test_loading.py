"""What a checkpoint says of the model that it came from."""

import shutil

from lrqat.training.loading import describe_base
from lrqat.training.model_settings import ModelSettings


def named(model):
    found = describe_base(ModelSettings(model=str(model)))
    return found["name"], found["revision"]


def test_the_working_folder_has_a_name(tiny_model, monkeypatch):
    monkeypatch.chdir(tiny_model)
    for here in (".", "./", f"../{tiny_model.name}", tiny_model):
        assert named(here) == (tiny_model.name, None)


def test_a_snapshot_of_the_hub_is_named_as_on_the_hub(tiny_model, tmp_path):
    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--some-owner--a-model" / "snapshots" / revision
    shutil.copytree(tiny_model, snapshot)
    assert named(snapshot) == ("some-owner/a-model", revision)


def test_another_folder_of_snapshots_is_no_hub(tiny_model, tmp_path):
    folder = tmp_path / "run" / "snapshots" / "step-100"
    shutil.copytree(tiny_model, folder)
    assert named(folder) == ("step-100", None)
