"""Several files that belong together: a reader finds all old ones or all new, whatever happens."""

import os
from contextlib import suppress

import pytest

from lrqat.atomic_files import is_present, replaced_files
from lrqat.errors import OutputError
from tests.support.faults import FAULTS, every_fault, run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")
NAMES = ["1-of-3", "2-of-3", "3-of-3"]


@pytest.fixture
def targets(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # that it is asked for is counted
    return [tmp_path / name for name in NAMES]


def put(targets, text, overwrite=True):
    with replaced_files(targets, overwrite) as paths:
        for path in paths:
            path.write_text(text)


def generations(targets):
    return [path.read_text() for path in targets if path.exists()]


def names_beside(targets):
    return sorted(os.listdir(targets[0].parent))


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_fails_all_are_old_or_all_are_new(fault, targets):
    put(targets, "0")
    found = []
    for at in every_fault(lambda: put(targets, "1"), fault):
        if targets[0].exists():  # for who knows nothing of us, such as llama.cpp
            assert generations(targets) in (["0"] * 3, ["1"] * 3), f"before operation {at}"
        assert is_present(targets[0])
        assert generations(targets) in (["0"] * 3, ["1"] * 3), f"before operation {at}"
        found.append(generations(targets)[0])
        put(targets, "0")
        assert names_beside(targets) == NAMES, f"litter of operation {at}"
    assert generations(targets) == ["1"] * 3
    if fault == "kill":  # other faults may pass without a consequence
        assert found == sorted(found), "once they are published they stay so"
    assert set(found) == {"0", "1"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_recovery_that_fails_can_be_done_again(fault, targets):
    def publish():
        put(targets, "1")

    put(targets, "0")
    for at in every_fault(publish, "kill"):
        if generations(targets) == ["1", "0"]:
            half = at
            break
        put(targets, "0")
    for at in every_fault(lambda: is_present(targets[0]), fault):
        if targets[0].exists():
            assert generations(targets) == ["1"] * 3
        assert is_present(targets[0])
        assert generations(targets) == ["1"] * 3, f"before operation {at}"
        put(targets, "0")
        assert names_beside(targets) == NAMES, f"litter of operation {at}"
        run(publish, "kill", half)
        assert generations(targets) == ["1", "0"]
    assert names_beside(targets) == NAMES


def test_first_files_that_are_refused_are_whole_and_nothing_lies_beside_them(targets):
    """The same command once more, without leave to replace what a killed one had published."""
    for at in every_fault(lambda: put(targets, "1"), "kill"):
        with suppress(OutputError):
            put(targets, "1", overwrite=False)
        assert generations(targets) == ["1"] * 3, f"before operation {at}"
        assert names_beside(targets) == NAMES, f"litter of operation {at}"
        for path in targets:
            path.unlink()


def test_one_file_that_is_refused_has_nothing_beside_it(targets):
    first = targets[:1]
    for at in every_fault(lambda: put(first, "1"), "kill"):
        with suppress(OutputError):
            put(first, "1", overwrite=False)
        assert names_beside(targets) == NAMES[:1], f"litter of operation {at}"
        first[0].unlink()


def test_what_a_writer_left_in_its_temporary_folder_is_not_published(targets):
    with replaced_files(targets, True) as paths:
        for path in paths:
            path.write_text("1")
        (paths[0].parent / "notes").write_text("scratch")
    assert names_beside(targets) == NAMES


def test_a_reader_who_misses_a_file_makes_nothing(targets):
    assert not is_present(targets[0])
    assert not is_present(targets[0].parent / "no" / "such" / "file")
    assert names_beside(targets) == []


def test_a_reader_leaves_what_is_being_written(targets):
    with replaced_files(targets, True) as paths:
        for path in paths:
            path.write_text("1")
        assert run(lambda: is_present(targets[0]))
        assert all(path.exists() for path in paths)
    assert generations(targets) == ["1"] * 3
