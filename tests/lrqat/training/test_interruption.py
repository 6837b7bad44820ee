"""Ctrl-C: what was done is kept, the message says how to go on, and that gives the same model."""

import os
import shlex
import signal
import threading

import pytest
import torch
from safetensors.torch import load_file

from lrqat.cli import command
from lrqat.cli import train as train_command
from lrqat.training.blocks import stage
from lrqat.training.config import TrainConfig
from lrqat.training.interruption import Interrupted, interruptible
from lrqat.training.run import train
from lrqat.training.trainer import LRQATTrainer

SMALL = {"steps": 5, "batch_size": 2, "sequence_length": 32, "rank": 4, "context": 32}
SMALL |= {"eval_windows": 2, "importance_tokens": 64, "save_every": 100}
SMALL |= {"block_steps": 3, "block_tokens": 1024}

pytestmark = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals come elsewhere"
)


@pytest.fixture
def config(tiny_model, text_file, tmp_path):
    def make(name, **options):
        paths = {"model": str(tiny_model), "data": str(text_file), "output": str(tmp_path / name)}
        return TrainConfig(**SMALL | paths | options)

    return make


def interrupt_at(monkeypatch, place, name, call):
    """Ctrl-C before the call of that number of a function."""
    original, calls = getattr(place, name), []

    def wrapped(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **kwargs)

    monkeypatch.setattr(place, name, wrapped)


def weights(config):
    return load_file(f"{config.output}/model.safetensors")


def assert_same(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("options", "place", "name", "call"),
    [
        ({"stages": "model", "teacher": "none"}, LRQATTrainer, "training_step", 2),
        ({"stages": "blocks"}, stage, "fit_block", 2),
    ],
    ids=["steps", "blocks"],
)
def test_what_was_done_is_kept_and_continued(options, place, name, call, config, monkeypatch):
    stopped = config("stopped", **options)
    with monkeypatch.context() as patched:
        interrupt_at(patched, place, name, call)
        with pytest.raises(Interrupted) as ended:
            train(stopped)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    _, _, line = str(ended.value).partition("To go on: lrqat train ")
    arguments = shlex.split(line)
    states = os.listdir(f"{stopped.output}/checkpoints")
    assert ("checkpoint-2" if name == "training_step" else "blocks") in states
    again = []
    with monkeypatch.context() as patched:  # how often it is called is what is left to do
        patched.setattr(place, name, _counted(getattr(place, name), again))
        assert train_command.main(arguments) == 0
    assert len(again) == (3 if name == "training_step" else 1)
    whole = config("whole", **options)
    train(whole)
    assert_same(stopped, whole)


def _counted(function, calls):
    def counted(*args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    return counted


def test_the_second_one_does_not_wait(tmp_path, capsys):
    def twice():
        with interruptible(tmp_path, "a state is saved") as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.asked
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as ended:
        twice()
    assert not isinstance(ended.value, Interrupted)
    assert "once more to stop at once" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_command_ends_with_130_and_says_how_to_go_on(tmp_path, capsys):
    def main(argv):
        with interruptible(tmp_path, "") as interruption:
            interruption.asked = True
            interruption.raise_if_asked()

    with pytest.raises(SystemExit) as status:
        command.run(main)
    assert status.value.code == 130
    assert "--resume auto" in capsys.readouterr().err
