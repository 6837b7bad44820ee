"""What a run writes: counted before, and refused where there is no place for it."""

import shutil

import pytest

from lrqat.errors import OutputError
from lrqat.models.stored_model import open_model
from lrqat.training.config import TrainConfig
from lrqat.training.disk import bytes_written
from lrqat.training.plan import plan_training
from lrqat.training.run import train

SHORT = {"steps": 4, "batch_size": 2, "sequence_length": 32, "rank": 4, "context": 32}
SHORT |= {"stages": "model", "teacher": "none", "eval_windows": 2, "importance_tokens": 64}


@pytest.fixture
def settings(tiny_model, text_file, tmp_path):
    return SHORT | {
        "model": str(tiny_model), "data": str(text_file), "output": str(tmp_path / "run")
    }  # fmt: skip


@pytest.mark.parametrize("save_every", [2, 4])
def test_what_is_written_was_counted(settings, save_every):
    config = TrainConfig(**settings, save_every=save_every).resolved()
    model = open_model(config.model).skeleton
    plan = plan_training(config)
    counted = bytes_written(model, plan.surgery, config, plan.trainable)
    output = train(config).output
    written = sum(path.stat().st_size for path in output.rglob("*.safetensors"))
    assert counted == pytest.approx(written, rel=0.1)


def test_the_plan_refuses_a_disk_with_less_than_that(settings, monkeypatch):
    little = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: little)
    with pytest.raises(OutputError, match=r"cannot write .*run: it takes about"):
        plan_training(TrainConfig(**settings))


def test_the_plan_refuses_a_teacher_cache_that_cannot_be_made(settings, text_file, tmp_path):
    inside_a_file = str(text_file / "cache")
    with pytest.raises(OutputError, match=r"cannot write .*cache: a part of its path is a file"):
        plan_training(TrainConfig(**settings | {"teacher": "self", "teacher_cache": inside_a_file}))
