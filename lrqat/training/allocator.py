"""Memory that is free and still the process's: giving it back to the system between phases."""

import ctypes
import gc
import sys
from contextlib import suppress

import torch


def give_back() -> None:
    """Give freed memory back, on the host (glibc) and on a GPU.

    glibc keeps what was freed below something that is still in use. After a model has been loaded
    and put on its grid that is hundreds of megabytes, which the next phase would come on top of.
    """
    gc.collect()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
