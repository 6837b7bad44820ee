"""Ctrl-C while a run is at something that can be continued: it ends at the next safe place.

The first one asks: a step is finished, what there is is saved, and `Interrupted` says how to go on.
The second one does not wait. Elsewhere Ctrl-C ends the run at once, as in any program.
"""

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from lrqat.checkpoint.publishing import RUN
from lrqat.training import processes

_ASKED = "\ninterrupted: {what}; once more to stop at once\n"


class Interrupted(KeyboardInterrupt):
    """A run that ended when it was asked to; the message says what is kept and how to go on."""


class Interruption:
    """Whether the run was asked to end.

    Attributes:
        asked: since the block began.
    """

    def __init__(self, states: Path) -> None:
        self.asked = False
        self._states = states

    def raise_if_asked(self, save: Callable[[], object] = lambda: None) -> None:
        """At a safe place: end the run if it was asked to, after `save`.

        Every process must call this at the same places; one that was asked speaks for all.

        Raises:
            Interrupted: it was.
        """
        if not self._anybody():
            return
        save()
        raise Interrupted(
            f"interrupted; what was done is kept in {self._states}. To go on: lrqat train "
            f"{shlex.quote(str(self._states / RUN))} --resume auto"
        )

    def _anybody(self) -> bool:
        if processes.count() == 1:
            return self.asked
        flag = torch.tensor(float(self.asked), device=_meeting_device())
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())


@contextmanager
def interruptible(states: Path, what: str) -> Iterator[Interruption]:
    """Inside, the first Ctrl-C asks and the second one interrupts.

    Args:
        states: where the run keeps what it can be continued from.
        what: what happens when it is asked, for the message.
    """
    interruption = Interruption(states)

    def ask(number: int, frame: FrameType | None) -> None:
        if interruption.asked:
            raise KeyboardInterrupt
        interruption.asked = True
        sys.stderr.write(_ASKED.format(what=what))

    if threading.current_thread() is not threading.main_thread():
        yield interruption  # signals arrive elsewhere
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, before)


def _meeting_device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
