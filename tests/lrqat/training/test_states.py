"""Saved states: written whole, checked before they are believed, and exact."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from lrqat.atomic_files import write_json
from lrqat.errors import CheckpointError, OutputError, UserError
from lrqat.training.config import TrainConfig
from lrqat.training.states import folder as states
from lrqat.training.states.resume import find_state, record_run
from lrqat.training.states.snapshot import (
    optimizer_snapshot,
    random_snapshot,
    restore_optimizer,
    restore_random,
)
from tests.support.faults import FAULTS, every_fault

CONFIG = TrainConfig(model="model", data="data", output="output")


def write_files(folder, content=b"some bytes"):
    for name in states.FILES:
        (folder / name).write_bytes(content + name.encode())


@pytest.fixture
def three_saves(tmp_path):
    record_run(tmp_path, CONFIG)
    for step in (2, 4, 6):
        states.write_state(tmp_path, step, write_files)
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_the_two_newest_are_kept_and_the_last_is_resumed(three_saves):
    assert names(three_saves) == ["checkpoint-4", "checkpoint-6"]
    state = find_state(three_saves, "auto", CONFIG)
    assert state == three_saves / "checkpoint-6"
    assert states.damage(state) is None
    assert find_state(three_saves, str(state), CONFIG) == state


def test_a_failing_save_costs_no_earlier_state(three_saves, monkeypatch):
    def full_disk(folder):
        write_files(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="the disk is full"):
        states.write_state(three_saves, 8, full_disk)
    assert names(three_saves) == ["checkpoint-4", "checkpoint-6"]
    assert states.damage(three_saves / "checkpoint-6") is None


def test_no_state_is_removed_before_the_new_one_is_in_place(three_saves, monkeypatch):
    seen = []
    remove = states.shutil.rmtree

    def watched(path, **options):
        seen.append((Path(path).name, states.damage(three_saves / "checkpoint-8")))
        remove(path, **options)

    monkeypatch.setattr(states.shutil, "rmtree", watched)
    states.write_state(three_saves, 8, write_files)
    assert ("checkpoint-4", None) in seen
    assert all(wrong is None for name, wrong in seen if name.startswith("checkpoint"))


def test_a_killed_save_leaves_nothing_that_could_be_resumed(three_saves):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from lrqat.training.states import folder as states\n"
        "def write(folder):\n"
        "    for name in states.FILES: (folder / name).write_bytes(b'x')\n"
        "    print('writing', flush=True); time.sleep(60)\n"
        "states.write_state(Path(sys.argv[1]), 8, write)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(three_saves)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(names(three_saves)) == 3, "the killed save was under way"
    assert find_state(three_saves, "auto", CONFIG) == three_saves / "checkpoint-6"
    states.sweep(three_saves)
    assert names(three_saves) == ["checkpoint-4", "checkpoint-6"]


@pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_fails_a_save_costs_no_state(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    record_run(tmp_path, CONFIG)
    for step in (2, 4):
        states.write_state(tmp_path, step, write_files)
    for _ in every_fault(lambda: states.write_state(tmp_path, 6, write_files), fault):
        state = find_state(tmp_path, "auto", CONFIG)
        assert state in (tmp_path / "checkpoint-4", tmp_path / "checkpoint-6")
        states.sweep(tmp_path)
        shutil.rmtree(tmp_path / "checkpoint-6", ignore_errors=True)
        for step in (2, 4):
            states.write_state(tmp_path, step, write_files)
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left == ["checkpoint-2", "checkpoint-4", "run.json", "run.yaml"]
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-6"]


@pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_fails_the_settings_of_a_run_can_be_read(fault, tmp_path):
    record_run(tmp_path, CONFIG)
    changed = TrainConfig(model="model", data="data", output="output", seed=1)
    for _ in every_fault(lambda: record_run(tmp_path, changed), fault):
        recorded = json.loads((tmp_path / "run.json").read_text())
        assert recorded in (CONFIG.to_json(), changed.to_json())
        record_run(tmp_path, CONFIG)
        assert sorted(os.listdir(tmp_path)) == ["run.json", "run.yaml"]


@given(data=st.data())
def test_any_changed_byte_is_noticed(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    state = states.write_state(folder, 1, write_files)
    name = data.draw(st.sampled_from(sorted(states.FILES)))
    content = bytearray((state / name).read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    content[where] ^= data.draw(st.integers(1, 255))
    (state / name).write_bytes(content)
    assert name in (states.damage(state) or "")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", sorted(states.FILES | {states.STATE}))
@pytest.mark.parametrize("harm", [truncate, Path.unlink])
def test_auto_falls_back_and_says_so_and_a_named_state_is_refused(three_saves, name, harm):
    damaged = three_saves / "checkpoint-6"
    target = damaged / name
    if name == states.STATE and harm is truncate:  # its last byte is a line's end
        target.write_bytes(target.read_bytes()[:-3])
    else:
        harm(target)
    said = []
    assert find_state(three_saves, "auto", CONFIG, said.append) == three_saves / "checkpoint-4"
    assert len(said) == 1
    assert str(damaged) in said[0]
    assert name in said[0]
    with pytest.raises(UserError, match=f"{name}.*--resume auto"):
        find_state(three_saves, str(damaged), CONFIG)
    states.write_state(three_saves, 5, write_files)
    assert names(three_saves) == ["checkpoint-4", "checkpoint-5"], "the damaged one is gone"
    states.write_state(three_saves, 6, write_files)
    assert states.damage(damaged) is None


def test_without_any_intact_state_auto_starts_over_and_says_so(three_saves):
    for step in (4, 6):
        truncate(three_saves / f"checkpoint-{step}" / states.OPTIMIZER)
    said = []
    assert find_state(three_saves, "auto", CONFIG, said.append) is None
    assert len(said) == 3
    assert "starting at the beginning" in said[-1]
    assert find_state(three_saves, None, CONFIG, said.append) is None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": "x"}, "does not describe"),
        ({"version": 2}, "version 2"),
        ({"files": {}}, "list"),
    ],
)
def test_a_record_of_something_else_is_refused(three_saves, change, match):
    path = three_saves / "checkpoint-6" / states.STATE
    write_json(path, json.loads(path.read_text()) | change)
    assert match in (states.damage(path.parent) or "")
    path.write_text("[" * 100_000)
    assert "not valid JSON" in (states.damage(path.parent) or "")


@given(draws=st.integers(0, 7), seed=st.integers(0, 2**32 - 1))
def test_generators_continue_where_they_were(draws, seed, tmp_path_factory):
    """Through a file; an odd number of Gaussian draws leaves one held back."""

    def draw():
        return (
            [random.gauss(0, 1) for _ in range(3)] + [random.random()],
            [*np.random.normal(size=3).tolist(), np.random.randint(1000)],  # noqa: NPY002
            torch.randn(5).tolist(),
        )

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    for _ in range(draws):
        random.gauss(0, 1)
        np.random.normal()  # noqa: NPY002
        torch.rand(1)
    path = tmp_path_factory.mktemp("random") / "random.safetensors"
    save_file(random_snapshot(), path)
    expected = draw()
    draw()
    restore_random(load_file(path))
    assert draw() == expected


def make_adamw(**settings):
    torch.manual_seed(0)
    named = {"a.lora_a": nn.Parameter(torch.randn(3, 2)), "a.scale": nn.Parameter(torch.randn(3))}
    groups = [{"params": [p], "lr": 0.1 * n} for n, p in enumerate(named.values(), 1)]
    return named, torch.optim.AdamW(groups, betas=(0.9, 0.95), **settings)


def steps(named, optimizer, count):
    for _ in range(count):
        sum((p**4).sum() for p in named.values()).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("amsgrad", [False, True])
def test_an_optimizer_goes_on_bit_for_bit_after_a_trip_through_files(tmp_path, amsgrad):
    whole = make_adamw(amsgrad=amsgrad)
    steps(*whole, 5)
    first = make_adamw(amsgrad=amsgrad)
    steps(*first, 2)
    tensors, saved = optimizer_snapshot(first[1], first[0])
    save_file(tensors, tmp_path / "o.safetensors")
    write_json(tmp_path / "o.json", saved)
    second = make_adamw(amsgrad=amsgrad)
    for name, parameter in second[0].items():
        parameter.data.copy_(first[0][name].data)
    saved = json.loads((tmp_path / "o.json").read_text())
    restore_optimizer(second[1], second[0], load_file(tmp_path / "o.safetensors"), saved)
    steps(*second, 3)
    assert all(torch.equal(whole[0][name], second[0][name]) for name in whole[0])
    assert second[1].param_groups[0]["betas"] == (0.9, 0.95)


def test_the_optimizer_of_other_parameters_is_refused():
    named, optimizer = make_adamw()
    tensors, saved = optimizer_snapshot(optimizer, named)
    renamed = {f"other.{name}": parameter for name, parameter in named.items()}
    with pytest.raises(CheckpointError, match="other parameters"):
        restore_optimizer(optimizer, renamed, tensors, saved)
