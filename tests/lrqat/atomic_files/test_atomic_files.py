"""What is published appears whole or not at all, whatever happens; and nothing else is touched."""

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

from lrqat.atomic_files import exchange as exchanging
from lrqat.atomic_files import folders as publishing
from lrqat.atomic_files import (
    recover,
    replaced_file,
    replaced_folder,
    staged_folder,
    write_json,
)
from lrqat.atomic_files.files import delete
from lrqat.errors import OutputError
from tests.support.faults import FAULTS, every_fault, run
from tests.support.published import MARKER, artefact, kept, put_replaced, put_staged, tree, write

posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")


MINE = {"mine": "user's", "mine-states/1": "state"}


def with_mine(target):
    (target / "mine-states").mkdir()
    for name, text in MINE.items():
        (target / name).write_text(text)


NO_EXCHANGE = [(publishing, "exchange", lambda first, second: False)]
PINNED = [(os.path, "ismount", lambda path: True)]
NO_WAITING = (os, "fsync", lambda handle: None)  # for the disk; that it is asked to is counted
WAYS = {
    "a folder that is ours": (put_replaced, {}, []),
    "with what stays": (put_staged, MINE, []),
    "names cannot be exchanged": (put_staged, MINE, NO_EXCHANGE),
    "a mounted volume": (put_staged, MINE, PINNED),
    "ours, names cannot be exchanged": (put_replaced, {}, NO_EXCHANGE),
}


@posix
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("way", WAYS)
def test_whatever_fails_a_reader_finds_the_old_folder_or_the_new(way, fault, tmp_path, monkeypatch):
    put, stays, patches = WAYS[way]
    for patch in (*patches, NO_WAITING):
        monkeypatch.setattr(*patch)
    target = tmp_path / "made"
    put(target, "0")
    if stays:
        with_mine(target)
    states = [artefact(str(n)) | stays for n in range(2)]
    found = []
    for at in every_fault(lambda: put(target, "1"), fault):
        now = tree(target)
        if not patches:  # one step: no reader needs to know of anything
            own = {name: text for name, text in now.items() if name not in MINE}
            assert own in (artefact("0"), artefact("1")), f"before operation {at}"
        recover(target, MARKER, kept if stays else publishing.keep_nothing)
        now = tree(target)
        assert now in states, f"before operation {at}"
        found.append(states.index(now))
        put(target, "0")
        assert tree(target) == states[0], f"after operation {at}"
        assert os.listdir(tmp_path) == ["made"], f"litter of operation {at}"
    assert tree(target) == states[1]
    if fault == "kill":  # other faults may pass without a consequence
        assert found == sorted(found), "once it is published it stays so"
    assert 0 in found
    assert 1 in found


@posix
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_fails_a_first_folder_is_there_whole_or_not_at_all(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(*NO_WAITING)
    target = tmp_path / "made"
    for at in every_fault(lambda: put_replaced(target, "1"), fault):
        assert tree(target) in (None, artefact("1")), f"before operation {at}"
        put_replaced(target, "0")
        assert os.listdir(tmp_path) == ["made"]
        publishing._remove(target)
    assert tree(target) == artefact("1")


@posix
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_fails_a_file_is_the_old_one_or_the_new(fault, tmp_path):
    target = tmp_path / "file"

    def put(text):
        with replaced_file(target, True) as path:
            path.write_text(text)

    put("0")
    for _ in every_fault(lambda: put("1"), fault):
        assert target.read_text() in "01"
        put("0")
        assert os.listdir(tmp_path) == ["file"]
    assert target.read_text() == "1"


@posix
@pytest.mark.parametrize("put", [put_replaced, put_staged])
def test_a_refused_folder_is_whole_and_nothing_lies_beside_it(put, tmp_path, monkeypatch):
    """The same command once more, without leave to replace what a killed one had published."""
    monkeypatch.setattr(*NO_WAITING)
    target = tmp_path / "made"
    for at in every_fault(lambda: put(target, "1"), "kill"):
        with suppress(OutputError), replaced_folder(target, False, MARKER) as staging:
            write(staging, "1")
        assert tree(target) == artefact("1"), f"before operation {at}"
        assert os.listdir(tmp_path) == ["made"], f"litter of operation {at}"
        publishing._remove(target)


def test_what_is_to_stay_beside_anothers_folder_is_not_swept_by_other_rules(tmp_path, monkeypatch):
    target = tmp_path / "made"
    put_staged(target, "0")
    with_mine(target)
    with monkeypatch.context() as patched:
        patched.setattr(publishing, "_carry_over", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            put_staged(target, "1")
    with pytest.raises(OutputError, match=r"holds no model\.onnx"):
        publishing.refuse_occupied(target, True, "model.onnx")
    put_staged(target, "2")
    assert tree(target) == artefact("2") | MINE
    assert os.listdir(tmp_path) == ["made"]


@posix
def test_an_error_leaves_no_litter_at_once(tmp_path):
    target = tmp_path / "made"
    put_replaced(target, "0")

    def fail():
        with staged_folder(target, MARKER) as staging:
            write(staging, "1")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="disk is full"):
        fail()
    assert tree(target) == artefact("0")
    assert os.listdir(tmp_path) == ["made"]


@posix
def test_a_folder_that_may_not_be_entered_is_deleted_too(tmp_path):
    """Root may enter all, so there somebody else tries."""
    made, inner = tmp_path / "made", tmp_path / "made" / "inner"
    inner.mkdir(parents=True)
    (inner / "template").touch()
    inner.chmod(0o600)
    root = os.geteuid() == 0
    for path in (tmp_path, made, inner) if root else ():
        os.chown(path, 65534, 65534)

    def act():
        os.chdir(tmp_path)  # whose parents are closed to others
        if root:
            os.setuid(65534)
        delete(Path("made"))

    assert run(act)
    assert not made.exists()


def test_folders_and_files_get_the_modes_of_new_ones(tmp_path):
    before = os.umask(0o027)
    try:
        put_replaced(tmp_path / "made", "0")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes["made"] == modes["inner"] == 0o750
    assert modes["weights"] == modes["template"] == 0o640


def test_a_working_directory_stays_the_working_directory(tmp_path, monkeypatch):
    target = tmp_path / "made"
    put_staged(target, "0")
    with_mine(target)
    monkeypatch.chdir(target)
    put_staged(Path(), "1")
    assert tree(Path()) == tree(target) == artefact("1") | MINE


def test_a_link_to_a_folder_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "made")
    put_staged(link, "0")
    put_staged(link, "1")
    assert link.is_symlink()
    assert tree(tmp_path / "disk") == {f"made/{name}": "1" for name in artefact("1")}


def test_names_are_exchanged_where_this_system_can(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not exchanging.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("neither Linux nor macOS, or a file system without it")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    with pytest.raises(OSError, match="No such file"):
        exchanging.exchange(tmp_path / "a", tmp_path / "nothing")


def test_a_list_of_names_to_remove_does_not_lead_out_of_the_folder(tmp_path):
    target, secret = tmp_path / "made", tmp_path / "secret"
    secret.write_text("mine")
    (target / ".publishing").mkdir(parents=True)
    write_json(target / ".publishing" / ".remove.json", ["../secret", "..", str(secret), 3])
    (target / ".publishing" / MARKER).write_text("new")
    recover(target, MARKER)
    assert tree(tmp_path) == {"made/marker.json": "new", "secret": "mine"}


def test_a_folder_without_the_marker_is_somebody_elses(tmp_path):
    target = tmp_path / "photos"
    target.mkdir()
    (target / "me.jpg").write_text("x")
    with pytest.raises(OutputError, match=r"holds no marker\.json"):
        put_replaced(target, "1")
    assert tree(target) == {"me.jpg": "x"}
