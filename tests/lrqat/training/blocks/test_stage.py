"""The block-wise stage: what it gives, and that a run which was stopped gives the same."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrqat.errors import CheckpointError, ModelError, UserError
from lrqat.models import hub
from lrqat.training.blocks import stage
from lrqat.training.blocks.aside import set_aside
from lrqat.training.blocks.states import HiddenStates
from lrqat.training.blocks.walk import BlockWalk
from lrqat.training.config import TrainConfig
from lrqat.training.run import train
from tests.support.zoo import MODELS, make

BLOCKS = {"steps": 4, "batch_size": 2, "sequence_length": 64, "rank": 4, "context": 64}
BLOCKS |= {"eval_windows": 4, "save_every": 2, "block_steps": 12, "block_tokens": 4096}


@pytest.fixture
def settings(base_model, text_file, tmp_path):
    paths = {"model": str(base_model), "data": str(text_file), "output": str(tmp_path / "run")}
    return BLOCKS | paths | {"grid": "q2_0"}


def tensors_of(output):
    return {p.name: load_file(p) for p in output.glob("*.safetensors")}


def assert_same_tensors(one, other):
    one, other = tensors_of(one), tensors_of(other)
    assert one.keys() == other.keys()
    for name, tensors in one.items():
        assert all(torch.equal(tensors[key], other[name][key]) for key in tensors), name


def test_blocks_learn_what_they_did(settings):
    report = train(TrainConfig(**settings))
    assert [block.name for block in report.blocks] == ["model.layers.0", "model.layers.1"]
    assert all(block.after < 0.8 * block.before for block in report.blocks)
    assert all(0.01 < block.changed < 0.4 for block in report.blocks)
    assert report.rounded is None
    assert report.kl_start >= report.kl_after


@pytest.mark.parametrize("train_norms", [True, False])
def test_norms_learn_with_the_blocks_and_stay_in_their_type(settings, train_norms):
    settings |= {"stages": "blocks", "block_steps": 4, "dtype": "float32"}
    output = train(TrainConfig(**settings, train_norms=train_norms)).output
    before, after = (
        {n: t for n, t in load_file(Path(f, "model.safetensors")).items() if "layernorm" in n}
        for f in (settings["model"], output)
    )
    assert before.keys() == after.keys()
    assert len(before) == 4
    for name, norm in before.items():
        assert after[name].dtype == norm.dtype
        assert torch.equal(after[name], norm) == (not train_norms)


def test_auto_is_for_few_bits_and_lr_qat():
    def stages(**options):
        return TrainConfig(model="m", data="d", output="o", **options).resolved().stages

    assert stages(grid="q4_0") == stages(grid="q2_k") == "blocks,model"
    assert stages(grid="q5_0") == stages(method="rtn") == stages(streamed=True) == "model"
    with pytest.raises(UserError, match="--stages model"):
        TrainConfig(model="m", data="d", output="o", method="full", stages="blocks")


def test_a_run_that_is_stopped_between_blocks_goes_on_to_the_same_bytes(
    settings, tmp_path, monkeypatch
):
    whole = train(TrainConfig(**settings | {"output": str(tmp_path / "whole")})).output
    fit, fitted = stage.fit_block, []

    def stopping(*arguments):
        if len(fitted) == 1:
            raise KeyboardInterrupt
        fitted.append(arguments)
        return fit(*arguments)

    monkeypatch.setattr(stage, "fit_block", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(TrainConfig(**settings))
    with pytest.raises(UserError, match="block_steps 12, this one has 13"):
        train(TrainConfig(**settings | {"block_steps": 13}), resume="auto")
    monkeypatch.setattr(stage, "fit_block", lambda *a: fitted.append(a) or fit(*a))
    blocks = Path(settings["output"], "checkpoints", "blocks")
    (blocks / "start-of-a-killed-one.tmp").mkdir()
    (blocks / "hidden-of-a-killed-one.tmp").write_bytes(b"states")
    resumed = train(TrainConfig(**settings), resume="auto").output
    assert len(fitted) == 2, "finished blocks are not fitted again"
    assert not list(blocks.glob("*.tmp"))
    assert_same_tensors(whole, resumed)


def test_what_is_set_aside_comes_back_and_leaves_nothing(tmp_path):
    tensors = [torch.randn(3, 4, requires_grad=True), torch.randn(2)]
    before = [tensor.detach().clone() for tensor in tensors]
    with set_aside(iter(tensors), tmp_path / "made") as restore:
        for tensor in tensors:
            tensor.detach().zero_()
        restore()
    assert all(map(torch.equal, tensors, before))
    assert not list((tmp_path / "made").iterdir())


def test_a_run_that_is_continued_in_its_second_stage_takes_the_blocks_as_they_were(
    settings, tmp_path, monkeypatch
):
    done = train(TrainConfig(**settings)).output
    before = tensors_of(done)
    monkeypatch.setattr(stage, "fit_block", None)  # which cannot be called
    again = train(TrainConfig(**settings), overwrite=True, resume="auto").output
    after = tensors_of(again)
    assert all(torch.equal(before[f][n], t) for f in after for n, t in after[f].items())
    block = next((again / "checkpoints" / "blocks").glob("model.layers.1.safetensors"))
    altered = load_file(block)
    save_file({name: t + 1 for name, t in altered.items()}, block)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1.*altered.*--overwrite"):
        train(TrainConfig(**settings), overwrite=True, resume="auto")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_in_a_block_it_resumes_to_the_same_bytes(settings, tmp_path):
    settings |= {"block_steps": 40}
    whole = train(TrainConfig(**settings | {"output": str(tmp_path / "whole")})).output
    arguments = [sys.executable, "tools/train.py"]
    for name, value in settings.items():
        arguments += ["--" + name.replace("_", "-"), str(value)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    finished = tmp_path / "run" / "checkpoints" / "blocks" / "model.layers.0.safetensors"
    deadline = time.monotonic() + 180
    while not finished.is_file():
        assert time.monotonic() < deadline
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert_same_tensors(whole, train(TrainConfig(**settings), resume="auto").output)


def test_a_compensated_start_is_nearer_for_a_block(settings, tmp_path):
    settings |= {"stages": "blocks", "block_steps": 1, "block_learning_rate": 0}
    nearest = train(TrainConfig(**settings | {"output": str(tmp_path / "nearest")}))
    made_up = train(TrainConfig(**settings, block_start="compensated"))
    assert made_up.blocks[0].before < 0.8 * nearest.blocks[0].before


def test_a_streamed_model_gives_the_same_bytes(settings, tmp_path):
    settings |= {"stages": "blocks"}
    whole = train(TrainConfig(**settings | {"output": str(tmp_path / "whole")})).output
    streamed = train(TrainConfig(**settings, streamed=True)).output
    assert_same_tensors(whole, streamed)


def test_training_that_only_makes_it_worse_ends_where_it_began(settings):
    said = []
    report = train(TrainConfig(**settings, learning_rate=50.0), say=said.append)
    assert any("ended above its start, so its start is what is written" in line for line in said)
    assert report.kl_after == report.kl_start
    assert report.changed == 0


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_is_run_block_by_block(name):
    model = make(name).eval()
    tokens = torch.arange(24).view(2, 12) % model.config.get_text_config().vocab_size
    walk = BlockWalk(model, 12)
    with torch.no_grad():
        hidden = walk.embed(tokens)
        for index in range(len(walk.names)):
            hidden = walk.run(index, hidden, slice(None))
        logits = walk.tail()(hidden)
        torch.testing.assert_close(logits, model(input_ids=tokens).logits)
    assert [walk.block(i) for i in range(2)] == [model.get_submodule(n) for n in walk.names]


def test_a_model_whose_blocks_hand_on_more_than_states_is_refused(tiny_model):
    model = hub.load_model(tiny_model, dtype=torch.float32)
    layers, forward = model.model.layers, type(model.model).forward

    def beside(self, *args, **kwargs):
        made = forward(self, *args, **kwargs)
        made.last_hidden_state = made.last_hidden_state + len(seen)
        return made

    seen = []
    layers[0].register_forward_hook(lambda *_: seen.append(1))
    model.model.forward = beside.__get__(model.model)
    with pytest.raises(ModelError, match="--stages model"):
        BlockWalk(model, 8)


def test_states_too_large_for_memory_are_mapped_and_removed(tmp_path, monkeypatch):
    shape = (5, 16, 8)
    inside = HiddenStates(shape, torch.device("cpu"), tmp_path)
    monkeypatch.setattr("lrqat.training.blocks.states.MOST_IN_MEMORY", 0)
    mapped = HiddenStates(shape, torch.device("cpu"), tmp_path)
    values = torch.randn(shape)
    for states in (inside, mapped):
        states.become(lambda rows: values[rows])
        assert torch.equal(states.batch(slice(1, 3), torch.float32), values[1:3].bfloat16().float())
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [2 * math.prod(shape)]
    mapped.close()
    assert not list(tmp_path.iterdir())
