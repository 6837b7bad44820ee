"""Runs and their folders: killed while they publish, two into one, over what they read."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from lrqat.checkpoint.manifest import FILE_NAME, names_in
from lrqat.checkpoint.publishing import PICTURE
from lrqat.checkpoint.reader import Checkpoint
from lrqat.cli import train
from lrqat.errors import OutputError
from tests.support.paths import ROOT

posix = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")


def arguments(model, text, output, *more, method="rtn"):
    small = {"steps": 2, "batch-size": 1, "sequence-length": 32, "rank": 4, "context": 32}
    small |= {
        "stages": "model",
        "teacher": "none",
        "eval-windows": 2,
        "importance-tokens": 64,
        "save-every": 1,
        "method": method,
    }
    options = {"model": model, "data": text, "output": output} | small
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)] + [*more]


# Dies before the operation of publishing that is named, or in the middle of it.
KILLED = """
import os, signal, sys
from lrqat.atomic_files import folders
from lrqat.cli import train

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def dying(function, when):
    def call(*arguments):
        if when == "before":
            die()
        if when == "within":
            os.rename = die
        function(*arguments)
        die()
    return call

_, name, when, *rest = sys.argv
setattr(folders, name, dying(getattr(folders, name), when))
train.main(rest)
"""
MOMENTS = [("_publish", "before"), ("exchange", "after"), ("_carry_over", "within")]


def seed_of(folder):
    return Checkpoint.open(folder).manifest["training"]["seed"]


@posix
@pytest.mark.slow
@pytest.mark.parametrize(("operation", "when"), MOMENTS)
def test_an_overwriting_run_that_is_killed_leaves_the_old_checkpoint_or_the_new(
    operation, when, tiny_model, text_file, tmp_path
):
    output = tmp_path / "run"
    command = arguments(tiny_model, text_file, output)
    assert train.main(command) == 0
    (output / "model-q4_0.gguf").write_text("exported")
    before = names_in(output)
    killed = [sys.executable, "-c", KILLED, operation, when, *command, "--overwrite", "--seed", "1"]
    done = subprocess.run(killed, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert seed_of(output) == int(operation != "_publish")
    assert train.main([*command, "--seed", "1", "--resume", "auto"]) == 0
    assert seed_of(output) == 1
    assert names_in(output) == before, "what is not the checkpoint's is there, and no litter"
    assert os.listdir(tmp_path) == ["run"]


@posix
def test_a_second_run_into_one_folder_is_refused_and_told_who_the_first_is(
    tiny_model, text_file, tmp_path
):
    output = tmp_path / "run"
    command = arguments(tiny_model, text_file, output, "--steps", "100000", method="lr-qat")
    first = [sys.executable, "tools/train.py", *command]
    with subprocess.Popen(
        first, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while not list(output.glob("checkpoints/checkpoint-*")):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.05)
            for more in ([], ["--overwrite"], ["--resume", "auto"]):
                with pytest.raises(OutputError, match=rf"written by process {process.pid} \(train"):
                    train.main([*command, *more])
        finally:
            process.kill()
    assert train.main(arguments(tiny_model, text_file, output, "--overwrite")) == 0
    assert os.listdir(tmp_path) == ["run"]
    assert seed_of(output) == 0


@pytest.fixture
def model(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "base")


@pytest.mark.parametrize("more", [["--overwrite"], ["--resume", "auto"], ["--dry-run"]])
@pytest.mark.parametrize(("output", "relation"), [("base", "is"), (".", "holds")])
def test_a_run_over_its_own_model_is_refused(
    output, relation, more, model, text_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    with pytest.raises(OutputError, match=f"--output {output} {relation} --model base"):
        train.main(arguments("base", text_file, output, *more))
    assert before == {path.name: path.read_bytes() for path in model.iterdir()}


def test_a_run_into_a_folder_of_its_model_may_not_overwrite(model, text_file, tmp_path):
    command = arguments(model, text_file, model / "q4")
    assert train.main([*command, "--dry-run"]) == 0
    with pytest.raises(OutputError, match=r"lies in --model .*name another place"):
        train.main([*command, "--overwrite"])


@pytest.mark.parametrize("option", ["data", "eval-data", "teacher", "imatrix", "teacher-cache"])
def test_a_run_over_anything_that_it_reads_is_refused(option, tiny_model, text_file, tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    given = {"model": str(tiny_model), "data": str(text_file), "output": str(output)}
    if option == "teacher-cache":
        given |= {"teacher": "self"}
    given[option] = str(output / "read")
    if option != "teacher-cache":  # it need not be there yet
        (output / "read").touch()
    command = [part for name, value in given.items() for part in (f"--{name}", value)]
    with pytest.raises(OutputError, match=f"{output} holds --{option} "):
        train.main([*command, "--overwrite"])


def test_a_state_may_lie_where_its_own_run_keeps_it_and_nowhere_else(
    tiny_model, text_file, tmp_path
):
    command = arguments(tiny_model, text_file, tmp_path / "run", method="lr-qat")
    assert train.main(command) == 0
    state = tmp_path / "run" / "checkpoints" / "checkpoint-1"
    assert train.main([*command, "--resume", str(state)]) == 0
    for place in (state, state.parent):
        other = arguments(tiny_model, text_file, place, method="lr-qat")
        with pytest.raises(OutputError, match="--resume"):
            train.main([*other, "--resume", str(state)])


def test_what_is_published_names_no_path_and_a_run_still_knows_its_settings(
    tiny_model, text_file, tmp_path
):
    command = arguments(tiny_model, text_file, tmp_path / "run", method="lr-qat")
    assert train.main(command) == 0
    output = tmp_path / "run"
    recorded = json.loads((output / FILE_NAME).read_text())["training"]
    assert recorded["model"] == tiny_model.name
    assert recorded["data"] == text_file.name
    for path in output.iterdir():
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path.name
            assert str(tiny_model.parent).encode() not in path.read_bytes(), path.name
    assert train.main([*command, "--resume", "auto"]) == 0


def test_a_run_that_was_killed_after_its_last_step_takes_no_other(tiny_model, text_file, tmp_path):
    """As it published: what is resumed has nothing left to train."""
    given = arguments(tiny_model, text_file, tmp_path / "run", method="lr-qat")
    assert train.main(given) == 0
    made = [tmp_path / "run" / name for name in ("model.safetensors", PICTURE)]
    before = [path.read_bytes() for path in made]
    for path in (tmp_path / "run" / FILE_NAME, made[1]):
        path.unlink()
    assert train.main([*given, "--resume", "auto"]) == 0
    assert [path.read_bytes() for path in made] == before
    states = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.is_dir()]
    assert sorted(states)[-1] == "checkpoint-2"
