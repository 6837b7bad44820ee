"""A GGUF file appears complete or not at all, and leaves nothing beside it."""

import contextlib
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from exporters import gguf
from exporters.gguf import writer as writing
from lrqat.atomic_files import replaced_file
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import OutputError
from tests.support.paths import ROOT


@pytest.fixture
def checkpoint(fused_checkpoint):
    return Checkpoint.open(fused_checkpoint)


def test_an_existing_file_is_kept_unless_overwritten(checkpoint, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"mine")
    plan = gguf.plan(checkpoint)
    with pytest.raises(OutputError, match="exists"):
        gguf.write(plan, path)
    assert path.read_bytes() == b"mine"
    gguf.write(plan, path, overwrite=True)
    assert not any(gguf.verify(path, checkpoint).values())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt(), ValueError()])
def test_a_failing_write_leaves_the_old_file(error, checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"old")
    calls = []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise error
        return original(*arguments)

    original = writing.packed_pieces
    monkeypatch.setattr(writing, "packed_pieces", fail)
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        gguf.write(gguf.plan(checkpoint), path, overwrite=True)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_reads_back_differently_is_not_kept(checkpoint, tmp_path, monkeypatch):
    original = writing.packed_pieces

    def flip(checkpoint, source, kind):
        data = np.concatenate(list(original(checkpoint, source, kind)))
        if source.name == "blk.1.attn_k.weight":
            data[3, 5] ^= 1
        return [data]

    monkeypatch.setattr(writing, "packed_pieces", flip)
    with pytest.raises(OutputError, match=r"1 tensors read back differently.*blk\.1\.attn_k"):
        gguf.write(gguf.plan(checkpoint), tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


_KILLED = """
import os, signal, sys
from exporters import gguf
from exporters.gguf import writer
from lrqat.checkpoint.reader import Checkpoint
def kill(name):
    if name.startswith("blk.1"):
        os.kill(os.getpid(), signal.SIGKILL)
gguf.write(gguf.plan(Checkpoint.open(sys.argv[1])), sys.argv[2], overwrite=True, progress=kill)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_export_leaves_the_old_file_and_its_litter_is_removed(checkpoint, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", _KILLED, str(checkpoint.path), str(path)]
    result = subprocess.run(command, cwd=ROOT, timeout=60, check=False)
    assert result.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    gguf.write(gguf.plan(checkpoint), path, overwrite=True)
    assert list(tmp_path.iterdir()) == [path]


def test_a_running_export_keeps_its_temporary_file(checkpoint, tmp_path):
    path = tmp_path / "model.gguf"
    with contextlib.suppress(ZeroDivisionError), replaced_file(path, False) as staged:
        staged.touch()
        gguf.write(gguf.plan(checkpoint), path)
        assert staged.exists()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == [path]
