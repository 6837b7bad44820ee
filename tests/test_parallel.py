"""Work on many tensors in several threads: order, bounds, errors."""

import threading
import time

import pytest

from exporters import parallel
from exporters.parallel import in_order


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


@pytest.mark.parametrize("workers", [1, 2, 7, None])
def test_results_come_in_order(workers):
    items = list(range(50))
    assert list(in_order(lambda n: n * n, items, lambda n: n, workers)) == [n * n for n in items]
    assert list(in_order(str, [], len, workers)) == []


def test_no_more_than_allowed_is_under_way(monkeypatch):
    monkeypatch.setattr(parallel, "_SHARED_BYTES", 10)
    work = Counter()
    items = [5, 1, 8, 8, 8, 2, 20, 3, 3, 3] * 5
    assert list(work.take(in_order(work, items, lambda n: n, workers=8))) == items
    # What was taken is counted until the next one is asked for.
    assert 20 < work.most <= 2 * 20 + 10


def test_results_that_nobody_takes_do_not_pile_up():
    work = Counter()
    results = in_order(work, [1] * 100, lambda n: n, workers=2)
    next(results)
    time.sleep(0.05)
    assert work.calls <= 4
    results.close()
    assert work.calls <= 4


def test_an_error_comes_at_its_place():
    def work(n):
        if n == 3:
            raise ValueError(n)
        return n

    results = in_order(work, range(100), lambda n: 1, workers=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="3"):
        next(results)
