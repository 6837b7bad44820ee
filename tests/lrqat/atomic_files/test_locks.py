"""One process writes at a time, and what a dead one left is told from what a living one writes."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lrqat import atomic_files
from lrqat.atomic_files import (
    locked,
    recover,
    refuse_overlap,
)
from lrqat.errors import OutputError
from tests.support.faults import run
from tests.support.published import MARKER, put_staged, tree

posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")


# Locks

HOLD = """
import sys, time
from pathlib import Path
from lrqat.atomic_files import staged_folder
with staged_folder(Path(sys.argv[1]), "marker.json") as staging:
    (staging / "half").write_text("x")
    print(staging, flush=True)
    time.sleep(120)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that is writing tmp_path/made, and what it writes."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "made")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process, Path(process.stdout.readline().strip())
        process.kill()


@posix
def test_a_second_writer_is_refused_and_told_who_the_first_is(holder, tmp_path):
    process, staging = holder
    with pytest.raises(OutputError, match=rf"is being written by process {process.pid} .* since"):
        put_staged(tmp_path / "made", "1")
    recover(tmp_path / "made", MARKER)
    assert tree(staging) == {"half": "x"}, "what is being written stays"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert staging.exists()
    put_staged(tmp_path / "made", "1")
    assert os.listdir(tmp_path) == ["made"]


@posix
def test_leftovers_are_swept_by_folder_but_not_those_of_the_living(holder, tmp_path):
    _, staging = holder
    run(lambda: put_staged(tmp_path / "other", "1"), "kill", 12)
    assert len(os.listdir(tmp_path)) == 4
    atomic_files.sweep_leftovers(tmp_path, MARKER)
    assert sorted(os.listdir(tmp_path)) == sorted([".made.lock", staging.name])


def test_a_lock_that_nobody_holds_holds_nothing_back(tmp_path):
    (tmp_path / ".made.lock").write_text('{"pid": 1, "host": "here"}')
    with locked(tmp_path / "made") as alone:
        assert alone
    assert not list(tmp_path.iterdir())


def test_a_process_may_write_within_what_it_has_locked(tmp_path):
    with locked(tmp_path / "made") as alone, locked(tmp_path / "made") as again:
        assert (alone, again) == (True, False)
        put_staged(tmp_path / "made", "1")
        with locked(tmp_path / "other") as other:
            assert other
    assert os.listdir(tmp_path) == ["made"]


def test_two_names_of_a_folder_have_one_lock(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "link").symlink_to("made")
    with locked(tmp_path / "made"), locked(tmp_path / "link") as alone:
        assert not alone


@posix
def test_of_many_that_want_a_lock_one_has_it_at_a_time(tmp_path):
    """Removing a lock file and taking it race with each other."""
    count = tmp_path / "count"
    count.write_text("0")

    def add():
        done = 0
        while done < 20:
            try:
                with locked(tmp_path / "made") as alone:
                    assert alone
                    count.write_text(str(int(count.read_text()) + 1))
                    done += 1
            except OutputError:
                pass

    started = [threading.Thread(target=run, args=(add,)) for _ in range(4)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert count.read_text() == "80"
    assert os.listdir(tmp_path) == ["count"]


# Overlap


@pytest.mark.parametrize(
    ("output", "relation"),
    [
        ("base", "is"), ("./x/../base", "is"), ("link", "is"), (".", "holds"),
        ("base/sub/new", "lies in"), ("link/new", "lies in"),
    ],
)  # fmt: skip
def test_an_output_over_its_input_is_refused_by_whatever_name(output, relation, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to("base")
    read = [("--data", None), ("--model", tmp_path / "base")]
    place = os.path.join(tmp_path, output)
    with pytest.raises(OutputError, match=f" {relation} --model .*name another place"):
        refuse_overlap(place, read)
    if relation == "lies in":
        refuse_overlap(place, read, inside=True)
    refuse_overlap(tmp_path / "base2", read)


def test_a_reader_of_a_folder_that_is_not_there_makes_none(tmp_path):
    recover(tmp_path / "no" / "such" / "folder", MARKER)
    assert os.listdir(tmp_path) == []
