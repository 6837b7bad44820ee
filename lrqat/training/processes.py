"""The processes of a run: those that torchrun or `accelerate launch` started, or this one alone."""

import time

import torch.distributed as dist
from accelerate import PartialState

_LETTING_GO_SECONDS = 0.5


def join(device: str) -> None:
    """Meet the other processes of the run, and take this one's device.

    Must come before anything is put on a device: "cuda" then means this process's GPU. Does nothing
    in a process that was started alone.

    Args:
        device: "cpu", or where the run computes.
    """
    PartialState(cpu=device == "cpu")


def is_main() -> bool:
    """Whether this process writes files and talks; exactly one does."""
    return not _together() or dist.get_rank() == 0


def count() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if _together() else 1


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
