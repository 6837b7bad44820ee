"""What a command says of a failure that its user can mend.

Everything else is our own fault, and keeps its traceback, which is what we need to mend it.
"""

import errno
import importlib.metadata
import os
import re

from lrqat.errors import UserError, first_line, is_about_memory
from lrqat.optional_libraries import missing

_MOST_SAID = 2000  # characters


def explanation(error: Exception) -> str | None:
    """The message for the user, or None where the fault is ours."""
    if isinstance(error, UserError):
        said = str(error)  # which may repeat a value of a file
        return said if len(said) <= _MOST_SAID else f"{said[:_MOST_SAID]} ..."
    if isinstance(error, ModuleNotFoundError):
        return _missing_package(error.name or "")
    if is_about_memory(error):
        return (
            f"memory ran out ({first_line(error):.200}); take a smaller --batch-size, "
            "--sequence-length or --context, or a machine with more (lrqat train --dry-run says "
            "how much a run needs)"
        )
    if isinstance(error, BrokenPipeError):
        return "standard output was closed before all was written to it"
    if isinstance(error, OSError):
        return _from_the_system(error)
    return None


def _from_the_system(error: OSError) -> str:
    """What the system refused; libraries make up OSErrors of their own, which have no number."""
    if error.errno is None:
        return first_line(error)
    reason = error.strerror or os.strerror(error.errno)
    if error.filename is not None:
        return f"{error.filename}: {reason}"
    where = "writing" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "reading or writing"
    return f"{where} failed: {reason}; check the disk, and where standard output goes"


def _missing_package(module: str) -> str | None:
    extra = _extra_with(module)
    if extra is None:
        return None
    return missing(module, f"lrqat[{extra}]", needed_by="this")


def _extra_with(module: str) -> str | None:
    """The extra of this package that a missing module is installed with."""
    try:
        requirements = importlib.metadata.requires("lrqat") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    name = re.escape(module.split(".")[0].replace("_", "-"))
    found = (re.match(rf"{name}\b(?!-).*extra == ['\"](.+?)['\"]", line) for line in requirements)
    return next((match[1] for match in found if match), None)
