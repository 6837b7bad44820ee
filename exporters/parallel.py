"""The same work on many tensors, on all cores, in bounded memory, with results in their order.

Threads suffice: numpy lets go of Python's lock while it computes, and so do files and sha256.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_SHARED_BYTES = 1 << 29


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    cost: Callable[[Item], int],
    workers: int | None = None,
) -> Generator[Result, None, None]:
    """Yield `work(item)` for every item, in order.

    One item more than there are threads may be under way, or done and not yet taken, and only
    while all of these together cost no more than the costliest of all and 512 MiB.

    Args:
        work: called in several threads at once.
        items: what to work on.
        cost: bytes that working on an item takes at most, its result included.
        workers: threads; None: one a core.
    """
    workers = workers or cores()
    most = max(map(cost, items), default=0) + _SHARED_BYTES
    with ThreadPoolExecutor(workers) as pool:
        begun: deque[tuple[Future[Result], int]] = deque()
        spent = 0
        try:
            for item in items:
                while len(begun) > workers or (begun and spent + cost(item) > most):
                    spent -= begun[0][1]
                    yield begun.popleft()[0].result()
                begun.append((pool.submit(work, item), cost(item)))
                spent += cost(item)
            while begun:
                yield begun.popleft()[0].result()
        finally:
            for future, _ in begun:
                future.cancel()
