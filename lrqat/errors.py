"""Errors that a user can cause. Every message names the thing, its value, and what to do next."""

import difflib
import errno
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

# What torch, CUDA's libraries and C++ say, in errors of their own.
_NO_MEMORY = re.compile(
    "not enough memory|can't allocate memory|cannot allocate memory|unable to allocate"
    "|out of memory|ALLOC_FAILED|bad_alloc|bad allocation",
    re.IGNORECASE,
)


class UserError(Exception):
    """Bad input: the commands print the message alone and exit with status 2."""


class GridError(UserError):
    """An unknown grid, or one that cannot hold the tensor asked of it."""


class CheckpointError(UserError):
    """A fused checkpoint that is missing, incomplete, altered, or of another version."""


class ModelError(UserError):
    """A model folder that is missing or is not a causal language model that we can quantise."""


class DataError(UserError):
    """Text that is missing, empty, too short, or in a form that we cannot read."""


class RecipeError(UserError):
    """A recipe that cannot be read, or that gives a model's weights grids that there are not."""


class OutputError(UserError):
    """An output that exists already, or that cannot be written."""


class ExportRefusedError(UserError):
    """An export that would not be exact. There is no approximate fallback."""


class NonFiniteLossError(UserError):
    """Training diverged; the last good state has been kept."""


class RuntimeUnavailableError(UserError):
    """A runtime (llama.cpp, ONNX Runtime) that is needed here is not installed or cannot load."""


def did_you_mean(asked: object, known: Iterable[str]) -> str:
    """What goes into a message about an unknown name: "did you mean a or b? ", or nothing."""
    order = list(known)
    near = difflib.get_close_matches(str(asked).lower(), order, n=len(order) or 1, cutoff=0.4)
    near.sort(key=order.index)  # of two equally near names, the one that is listed first
    near.sort(key=lambda name: -difflib.SequenceMatcher(a=str(asked).lower(), b=name).ratio())
    return f"did you mean {' or '.join(near[:3])}? " if near else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, with what it announces; its class if there is none.

    An announcement ends in a colon ("Validation error for field 'x':", and then which); the items
    of a list follow as long as one more is promised.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    count = 1
    if lines[0].endswith(":"):
        count = 2
        while lines[count - 1 : count] and lines[count - 1].endswith((",", " or", " and")):
            count += 1
    return " ".join(lines[:count])


def is_about_memory(error: BaseException) -> bool:
    """Whether memory ran out, which is no fault of what was being read."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    found = isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    return found or isinstance(error, MemoryError)


@contextmanager
def refusing(
    kind: type[UserError],
    what: str,
    remedy: str,
    *,
    cause: Callable[[BaseException], str | None] = lambda error: None,
) -> Iterator[None]:
    """Where a library is given what others wrote: whatever it raises becomes `kind`.

    Libraries raise what they like on inputs that they do not expect, a panic of their Rust code
    included, and each version raises something else. So nothing is listed here, and nothing but
    the library's own call belongs inside. Where memory ran out, its error passes as it is.

    Args:
        kind: what to raise. A UserError that is raised inside passes.
        what: what cannot be done, as in "cannot load the tokenizer of x".
        remedy: what to do next.
        cause: where we may know better than the library: why, and what to do, or None.

    Raises:
        UserError: of class `kind`, with the cause, or the first line of the library's message.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if is_about_memory(error):
            raise
        # PyO3's panics are no Exception, so that nobody catches them by chance.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        known = cause(error)
        if known is not None:
            raise kind(f"{what}: {known}") from error
        reason = first_line(error).rstrip(".:; ")
        if isinstance(error, KeyError):  # whose message is the key alone
            reason = f"there is no {reason}"
        raise kind(f"{what}: {reason:.500}; {remedy}") from error
