"""Errors that a user can cause. Every message names the thing, its value, and what to do next."""

import difflib
from collections.abc import Iterable


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
    """The first line of an error's message, or its class if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
