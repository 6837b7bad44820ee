"""What an option names with a number behind it: NAME:NUMBER, as in `a.jsonl:0.8`."""

import re
from pathlib import Path

_NUMBERED = re.compile(r"(.+):(-?\d+\.?\d*|-?\.\d+)")


def name_and_number(entry: str) -> tuple[str, float | None]:
    """The name and its number; None where there is none, or `entry` is the name of a file."""
    found = None if Path(entry).exists() else _NUMBERED.fullmatch(entry)
    return (found[1], float(found[2])) if found else (entry, None)
