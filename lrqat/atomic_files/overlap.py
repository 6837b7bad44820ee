"""Refusing an output that would be written over what it is made from."""

import os
from collections.abc import Iterable
from pathlib import Path

from lrqat.errors import OutputError


def refuse_overlap(
    output: str | Path,
    inputs: Iterable[tuple[str, str | Path | None]],
    *,
    inside: bool = False,
    option: str = "--output",
) -> None:
    """Refuse an output that is, holds or lies in something that is read.

    Links are followed, so another name for the same place is the same place.

    Args:
        output: file or folder that is to be written.
        inputs: what the user calls it and where it is, of all that is read: ("--model", "base").
        inside: whether the output may lie in an input.
        option: what the user calls the output.

    Raises:
        OutputError: they overlap; both are named.
    """
    above = _with_parents(output)
    for name, given in inputs:
        if given is None:
            continue
        if _same(output, [given]):
            relation = "is"
        elif _same(output, _with_parents(given)):
            relation = "holds"
        elif not inside and _same(given, above):
            relation = "lies in"
        else:
            continue
        raise OutputError(
            f"{option} {output} {relation} {name} {given}, which writing there could destroy; name "
            "another place"
        )


def _with_parents(path: str | Path) -> list[Path]:
    real = Path(os.path.realpath(path))
    return [real, *real.parents]


def _same(path: str | Path, others: Iterable[str | Path]) -> bool:
    """Whether `path` is one of `others`, by whatever name."""
    if not os.path.exists(path):
        return Path(os.path.realpath(path)) in map(Path, map(os.path.realpath, others))
    return any(os.path.exists(other) and os.path.samefile(path, other) for other in others)
