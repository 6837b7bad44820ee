"""Two real processes (gloo, on the CPU) against one: gradients, steps, states, skipped steps."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support import distributed_program
from tests.support.paths import ROOT

LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
KINDS = ["fp32", "fp32,fsdp", "fixed,fsdp"]
BAD = ["fp32,bad", "fp32,fsdp,bad"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folder with a folder for every case, each run by two processes."""
    folder = tmp_path_factory.mktemp("two")
    done = subprocess.run(
        [sys.executable, *LAUNCHER, distributed_program.__file__, str(folder), *KINDS, *BAD],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Function of a form of the frozen weights -> folder of the run of one process, this one."""
    folder, made = tmp_path_factory.mktemp("one"), set()

    def run(phi):
        if phi not in made:
            distributed_program.run(folder / phi, phi)
            made.add(phi)
        return folder / phi

    return run


def about(folder):
    return json.loads((folder / "about.json").read_text())


def close(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name in first:
        assert np.abs(first[name]).max() > 0, name
        np.testing.assert_allclose(first[name], second[name], err_msg=name, **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("case", KINDS)
def test_two_processes_with_half_the_batch_take_the_steps_of_one(one, two, case):
    phi, *sharding = case.split(",")
    folders = one(phi), two / case
    gradients = [load_file(folder / "gradients.safetensors") for folder in folders]
    assert {name.rpartition(".")[2] for name in gradients[0]} == {"lora_a", "lora_b", "scale"}
    largest = max(np.abs(g).max() for g in gradients[0].values())
    close(*gradients, rtol=1e-4, atol=1e-6 * largest)
    sharded = about(folders[1])["sharded"]
    for part in ("lora_a", "phi"):
        assert any(name.endswith(part) for name in sharded) == bool(sharding)
    losses = [[entry["loss"] for entry in about(f)["history"]] for f in folders]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    # Adam divides by the gradient's size, so where a gradient is rounding, steps are too: compare
    # what is computed with the parameters, not the parameters.
    whole = [load_file(folder / "whole.safetensors") for folder in folders]
    np.testing.assert_allclose(whole[0].pop("loss"), whole[1].pop("loss"), rtol=1e-5)
    assert all((whole[0][name] != whole[1][name]).mean() < 1e-3 for name in whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("case", KINDS)
def test_a_run_on_two_processes_resumes_bit_for_bit(two, case):
    folder = two / case
    first, again = (folder / part / "checkpoint-2" for part in ("first", "again"))
    for name in ("adapters.safetensors", "optimizer.safetensors"):
        tensors = load_file(first / name), load_file(again / name)
        assert tensors[0].keys() == tensors[1].keys()
        assert all(np.array_equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    generators = load_file(first / "random.safetensors")
    assert {name.partition(".")[0] for name in generators} == {"0", "1"}
    assert not [p for p in folder.rglob("*") if p.suffix in (".pt", ".pth", ".bin", ".pkl")]


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_a_loss_that_is_bad_on_one_rank_is_skipped_on_all(two, case):
    folder = two / case
    assert about(folder)["skipped"] == 1
    for name in ("adapters.safetensors", "optimizer.safetensors"):
        before, after = (load_file(folder / "first" / f"checkpoint-{n}" / name) for n in (1, 2))
        assert all(np.array_equal(before[key], after[key]) for key in before)
