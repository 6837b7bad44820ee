"""Places where writing would fail, found without writing."""

import os
import shutil
from types import SimpleNamespace

import pytest

from lrqat.atomic_files import refuse_unwritable
from lrqat.errors import OutputError

_DISK = shutil.disk_usage
_ACCESS = os.access


def test_a_place_that_can_be_written_passes_and_nothing_is_made(tmp_path):
    refuse_unwritable(tmp_path / "new" / "run", folder=True, needed=1)
    refuse_unwritable(tmp_path, folder=True)
    (tmp_path / "x.gguf").touch()
    refuse_unwritable(tmp_path / "x.gguf", folder=False)
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


@pytest.mark.parametrize(
    ("name", "folder", "reason"),
    [
        ("file", True, "a part of its path is a file"),
        ("file/run", True, "a part of its path is a file"),
        ("file/x.gguf", False, "a part of its path is a file"),
        (".", False, "it is a folder; name a file"),
    ],
)
def test_a_path_that_something_else_takes_is_refused(name, folder, reason, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=f"cannot write .*: {reason}"):
        refuse_unwritable(tmp_path / name, folder=folder)


@pytest.mark.parametrize(("folder", "name"), [(True, "a/run"), (True, "."), (False, "x.gguf")])
def test_a_folder_without_permission_is_refused(folder, name, tmp_path, monkeypatch):
    # As root, who runs tests in containers, every folder can be written.
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and _ACCESS(path, mode))
    with pytest.raises(OutputError, match="writing is not permitted there"):
        refuse_unwritable(tmp_path / name, folder=folder)


def test_a_file_system_that_is_read_only_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY))
    with pytest.raises(OutputError, match="the file system is read-only"):
        refuse_unwritable(tmp_path / "run", folder=True)


def test_a_disk_that_is_nearly_full_is_refused_with_both_figures(tmp_path, monkeypatch):
    free = _DISK(tmp_path)._replace(free=5 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    refuse_unwritable(tmp_path / "run", folder=True, needed=5 << 20)
    with pytest.raises(OutputError, match="takes about 6 MiB, and the disk has 5 MiB free"):
        refuse_unwritable(tmp_path / "run", folder=True, needed=6 << 20)
