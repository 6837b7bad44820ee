"""Without what only some systems have: fcntl, resource, fork, pread, /proc.

No other system is here to try; what they lack is taken away instead.
"""

import subprocess
import sys

import pytest
import torch

from lrqat import portable
from lrqat.training import machine
from lrqat.training.allocator import give_back
from lrqat.training.plan import device_of, dtype_of
from tests.support.paths import ROOT

# Imports everything of ours where it is missing, and writes a file, a folder and a lock.
WITHOUT = """
import builtins, importlib, io, multiprocessing, os, pathlib, pkgutil, signal, sys, tempfile
# What libraries take from the system is theirs.
import accelerate, datasets, loky, matplotlib.pyplot, onnx_ir, psutil, torch, transformers  # noqa
from transformers import Trainer  # noqa

for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in ("fork", "pread", "pwrite", "sched_getaffinity", "statvfs", "O_NOFOLLOW", "O_NONBLOCK"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGALRM", "SIGXCPU", "alarm"):
    delattr(signal, name)
opened = builtins.open

def no_proc(file, *args, **kwargs):
    if str(file).startswith(("/proc", "/sys")):
        raise FileNotFoundError(file)
    return opened(file, *args, **kwargs)

builtins.open = io.open = no_proc
import exporters, lrqat

count = 0
for package in (lrqat, exporters):
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if found.name != "lrqat.__main__":
            importlib.import_module(found.name)
            count += 1
assert count > 250, count

from lrqat import portable
from lrqat.atomic_files import locked, replaced_file, replaced_folder, write_json
from lrqat.limited_process import failure_of, limit_memory

assert not portable.CAN_COPY and portable.fcntl is None and portable.cores() >= 1
assert failure_of(lambda: 1 / 0, 1) is None
limit_memory()
folder = pathlib.Path(tempfile.mkdtemp())
with locked(folder / "a") as alone:
    assert not alone
with replaced_file(folder / "a.json", overwrite=False) as staged:
    write_json(staged, {"a": 1})
with replaced_folder(folder / "b", overwrite=False, marker="m") as staged:
    (staged / "m").write_text("x")
assert sorted(path.name for path in folder.iterdir()) == ["a.json", "b"], list(folder.iterdir())
from lrqat.training.machine import host_memory

virtual = type("V", (), {"total": 5})
psutil.virtual_memory = lambda: virtual  # which has ways of its own on each system
assert host_memory() == 5
"""


def test_everything_is_imported_and_writes_without_what_only_some_systems_have():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_lock_is_taken_once(tmp_path):
    with (tmp_path / "a").open("w+") as one, (tmp_path / "a").open("w+") as two:
        if portable.take_lock(one.fileno()) is None:
            pytest.skip("no locks here")
        assert portable.take_lock(two.fileno()) is False
        portable.replace_content(one.fileno(), b"long text")
        portable.replace_content(one.fileno(), b"short")
        assert portable.read_start(two.fileno(), 100) == b"short"


def test_windows_opens_no_folders(tmp_path, monkeypatch):
    def refuse(path, flags):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(portable.os, "open", refuse)
    with pytest.raises(PermissionError):
        portable.make_durable(tmp_path)
    monkeypatch.setattr(portable.os, "name", "nt")
    folder = type("Folder", (), {"is_dir": lambda self: True, "__str__": lambda self: "f"})()
    portable.make_durable(folder)


def test_a_mac_may_be_asked_for_its_gpu(monkeypatch):
    """There is none here: torch says what it would, and the rest must go by that."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device=None: empty(*size))
    assert device_of("mps") == "mps"
    assert dtype_of("auto", "mps") == torch.bfloat16
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 << 30)
    assert machine.device_memory("mps") == 12 << 30
    emptied = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: emptied.append(True))
    give_back()
    assert emptied
