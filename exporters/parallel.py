"""The same work on many tensors, on all cores, in bounded memory, with results in their order.

Processes, not threads: packing is many short numpy calls, each of which asks for Python's lock
again, and two threads take as long for all of them as one does. The processes are loky's, which
start clean on every system and need no guard around the caller's main module. A small model is done
before one would have started, and is not given to any.
"""

import concurrent.futures
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from typing import TypeVar

from loky import get_reusable_executor
from loky.process_executor import BrokenProcessPool

from lrqat.errors import UserError
from lrqat.portable import cores

Item = TypeVar("Item")
Result = TypeVar("Result")

_SHARED_BYTES = 1 << 29
_SMALL_BYTES = 1 << 28  # of all items together: done sooner than a process has started
_BATCHES = 8  # a worker, so that none waits long for the last; each carries `work` over anew


def in_order(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    cost: Callable[[Item], int],
    workers: int | None = None,
) -> Iterator[Result]:
    """Yield `work(item)` for every item, in order.

    One batch of items more than there are workers may be under way, or done and not yet taken, and
    only while all of these together cost no more than the costliest of all and 512 MiB.

    Args:
        work: called in other processes, so it has to be picklable, as items and results have.
        items: what to work on.
        cost: bytes that working on an item takes at most, its result included.
        workers: processes; None: one a core. None is started for one, or for little work.

    Raises:
        UserError: a process was killed, as the system does when memory runs out.
    """
    workers = min(workers or cores(), len(items))
    if workers < 2 or sum(map(cost, items)) <= _SMALL_BYTES:
        yield from map(work, items)
        return
    size = -(-len(items) // (workers * _BATCHES))
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    costs = [max(map(cost, batch)) for batch in batches]
    try:
        for results in _batches_in_order(work, batches, costs, workers):
            yield from results
    except BrokenProcessPool:
        raise UserError(
            "a process that packs tensors was killed, perhaps because memory ran out; free some, "
            "or let the model be packed on fewer cores (taskset -c 0 on Linux)"
        ) from None


def _batches_in_order(
    work: Callable[[Item], Result],
    batches: Sequence[Sequence[Item]],
    costs: Sequence[int],
    workers: int,
) -> Generator[list[Result], None, None]:
    most = max(costs) + _SHARED_BYTES
    pool = get_reusable_executor(max_workers=workers)
    begun: deque[tuple[Future[list[Result]], int]] = deque()
    spent = 0
    try:
        for batch, cost in zip(batches, costs, strict=True):
            while len(begun) > workers or (begun and spent + cost > most):
                spent -= begun[0][1]
                yield begun.popleft()[0].result()
            begun.append((pool.submit(_work_on, work, batch), cost))
            spent += cost
        while begun:
            yield begun.popleft()[0].result()
    finally:  # what cannot be cancelled is waited for: it may still write
        running = [future for future, _ in begun if not future.cancel()]
        concurrent.futures.wait(running)


def _work_on(work: Callable[[Item], Result], batch: Sequence[Item]) -> list[Result]:
    return [work(item) for item in batch]
