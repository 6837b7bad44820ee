"""Work on many tensors in several processes: order, bounds, errors."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from exporters import parallel
from exporters.parallel import in_order
from lrqat.errors import ExportRefusedError, UserError

SCRIPT = """
import os
from exporters import parallel
parallel._SMALL_BYTES = 0
found = list(parallel.in_order(lambda n: (n, os.getpid()), range(20), lambda n: 1, 2))
assert [n for n, _ in found] == list(range(20))
assert os.getpid() not in {pid for _, pid in found}
print("done")
"""


@pytest.fixture
def nothing_is_small(monkeypatch):
    monkeypatch.setattr(parallel, "_SMALL_BYTES", 0)


@pytest.fixture
def threads(monkeypatch, nothing_is_small):
    """Threads in place of processes, so that work can be watched."""
    monkeypatch.setattr(parallel, "get_reusable_executor", ThreadPoolExecutor)


class Counter:
    """Work that notes how much of it is begun and not yet taken."""

    def __init__(self):
        self.open = self.most = self.calls = 0
        self.lock = threading.Lock()

    def __call__(self, item):
        with self.lock:
            self.calls += 1
            self.open += item
            self.most = max(self.most, self.open)
        time.sleep(0.001 * (item % 3))
        return item

    def take(self, results):
        for result in results:
            with self.lock:
                self.open -= result
            yield result


@pytest.mark.parametrize("workers", [1, 2, 3, None])
def test_results_come_in_order(workers, nothing_is_small):
    items = list(range(50))
    assert list(in_order(lambda n: n * n, items, lambda n: n, workers)) == [n * n for n in items]
    assert list(in_order(str, [], len, workers)) == []


def test_little_work_is_done_here(monkeypatch):
    monkeypatch.setattr(parallel, "get_reusable_executor", lambda **_: pytest.fail("a process"))
    assert list(in_order(lambda n: os.getpid(), range(9), lambda n: 1, 4)) == [os.getpid()] * 9


def test_work_is_done_elsewhere_without_a_guard_around_main(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    found = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()}, check=False,
    )  # fmt: skip
    assert (found.returncode, found.stdout, found.stderr) == (0, "done\n", "")


def test_no_more_than_allowed_is_under_way(monkeypatch, threads):
    monkeypatch.setattr(parallel, "_SHARED_BYTES", 10)
    work = Counter()
    items = [5, 1, 8, 8, 8, 2, 20, 3, 3, 3] * 5
    assert list(work.take(in_order(work, items, lambda n: n, workers=8))) == items
    # What was taken is counted until the next one is asked for.
    assert 20 < work.most <= 2 * 20 + 10


def test_results_that_nobody_takes_do_not_pile_up(threads):
    work = Counter()
    results = in_order(work, [1] * 16, lambda n: n, workers=2)
    next(results)
    time.sleep(0.05)
    assert work.calls <= 4
    results.close()
    assert work.calls <= 4


def test_an_error_comes_as_it_was_raised(nothing_is_small):
    def work(n):
        if n == 3:
            raise ExportRefusedError(f"number {n}")
        return n

    results = in_order(work, range(16), lambda n: 1, workers=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ExportRefusedError, match=r"^number 3$"):
        next(results)
    assert list(in_order(str, range(4), lambda n: 1, workers=2)) == ["0", "1", "2", "3"]


def test_a_killed_process_is_a_message(nothing_is_small):
    def work(n):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match="was killed, perhaps because memory ran out"):
        list(in_order(work, range(4), lambda n: 1, workers=2))
    assert list(in_order(str, range(4), lambda n: 1, workers=2)) == ["0", "1", "2", "3"]
