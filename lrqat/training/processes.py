"""The processes of a run: those that torchrun or `accelerate launch` started, or this one alone."""

import os
import time

import torch.distributed as dist
from accelerate import PartialState

from lrqat.errors import UserError

_NUMBERS, _MEETING = ("RANK", "LOCAL_RANK", "WORLD_SIZE"), ("MASTER_ADDR", "MASTER_PORT")
_LETTING_GO_SECONDS = 0.5


def join(device: str) -> None:
    """Meet the other processes of the run, and take this one's device.

    Must come before anything is put on a device: "cuda" then means this process's GPU. Does nothing
    in a process that was started alone.

    Args:
        device: "cpu", or where the run computes.

    Raises:
        UserError: the environment says that there are others, and not how to meet them.
    """
    _refuse_half_a_launch()
    PartialState(cpu=device == "cpu")


def _refuse_half_a_launch() -> None:
    """What torchrun sets for its processes is set as a whole, or not at all."""
    present = [name for name in (*_NUMBERS, *_MEETING) if os.environ.get(name)]
    missing = [name for name in (*_NUMBERS, *_MEETING) if name not in present]
    wrong = [name for name in present if name in _NUMBERS and not os.environ[name].isdecimal()]
    if wrong or (missing and set(present) & set(_NUMBERS)):  # clusters set where to meet for all
        found = ", ".join(f"{name}={os.environ[name]}" for name in wrong or present)
        lacking = "which is no number" if wrong else f"and lacks {', '.join(missing)}"
        raise UserError(
            f"the environment has {found}, {lacking}: start the processes with torchrun, or unset "
            "it to start one alone"
        )


def is_main() -> bool:
    """Whether this process writes files and talks; exactly one does."""
    return not _together() or dist.get_rank() == 0


def count() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if _together() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _together() else 0


def wait() -> None:
    """Return when every process of the run has come here."""
    if _together():
        PartialState().wait_for_everyone()


def leave() -> None:
    """Say goodbye to the others. Those that have nothing left to do need not wait for the rest."""
    if _together():
        # A thread of gloo drops the tensors of a collective a moment after it is over, and needs
        # Python's lock for that. Whoever destroys the group holds the lock and waits for the thread
        # (~ProcessGroupGloo joins it): both would wait forever, or, while Python is shutting down,
        # the process would be aborted. Sleeping lends the lock.
        time.sleep(_LETTING_GO_SECONDS)
        dist.destroy_process_group()


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
