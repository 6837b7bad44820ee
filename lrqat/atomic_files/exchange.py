"""Swapping two names in one step, which Python has no call for.

Linux: renameat2 with RENAME_EXCHANGE. macOS: renamex_np with RENAME_SWAP.
"""

import ctypes
import errno
import os
import sys
from pathlib import Path
from typing import Any

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_RENAME_SWAP = 2
# The file system or kernel cannot, or not these two: a volume is mounted there, a layer is below.
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV, errno.EBUSY, errno.EPERM}


def exchange(first: Path, second: Path) -> bool:
    """Swap what two paths name; no reader ever finds one of them missing.

    Returns:
        Whether that was done; False, with nothing changed, where it cannot be.

    Raises:
        OSError: the disk failed.
    """
    call = _call()
    if call is None:
        return False
    if call(os.fsencode(first), os.fsencode(second)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(second))


def _call() -> Any:
    """A function of two names, or None."""
    if sys.platform not in ("linux", "darwin"):
        return None
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        swap = getattr(library, "renamex_np", None)
        return swap and (lambda a, b: swap(a, b, ctypes.c_uint(_RENAME_SWAP)))
    rename = getattr(library, "renameat2", None)
    flags = ctypes.c_uint(_RENAME_EXCHANGE)
    return rename and (lambda a, b: rename(_AT_FDCWD, a, _AT_FDCWD, b, flags))
