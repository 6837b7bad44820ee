"""Blocks that two processes fit together are those of one process with twice the batch."""

import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from lrqat.training.blocks import fitting
from lrqat.training.config import TrainConfig
from lrqat.training.run import train
from tests.support.commands import one_object
from tests.support.paths import ROOT

LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow
def test_two_processes_share_the_steps(base_model, text_file, tmp_path, monkeypatch):
    options = {"model": str(base_model), "data": str(text_file), "grid": "q2_0", "rank": 4}
    options |= {"sequence_length": 64, "context": 64, "eval_windows": 2, "stages": "blocks"}
    options |= {"block_steps": 8, "block_tokens": 8192}
    given = [f"--{n.replace('_', '-')}={v}" for n, v in options.items()]
    command = [*LAUNCHER, "tools/train.py", *given, "--output", str(tmp_path / "two"), "--json"]
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    two = one_object(done.stdout)["blocks"]
    monkeypatch.setattr(fitting, "BLOCK_BATCH", 2 * fitting.BLOCK_BATCH)
    one = train(TrainConfig(**options, output=str(tmp_path / "one")))
    for ours, theirs in zip(one.blocks, two, strict=True):
        assert theirs["before"] == pytest.approx(ours.before, rel=0.05)
        assert theirs["after"] == pytest.approx(ours.after, rel=0.05)
    files = [load_file(tmp_path / run / "model.safetensors") for run in ("one", "two")]
    packed = [n for n in files[0] if n.startswith("model.layers.0.") and n.endswith("packed")]
    assert packed
    same = [float((files[0][n] == files[1][n]).float().mean()) for n in packed]
    assert min(same) > 0.95, "the order of a sum decides few integers"
