"""What every export refuses in the same words."""

from collections.abc import Sequence

from lrqat.errors import ExportRefusedError


def refuse_inexact(refusals: Sequence[str]) -> None:
    """Raise ExportRefusedError if a plan has reasons not to be written."""
    if refusals:
        reasons = "\n".join(f"- {reason}" for reason in refusals)
        raise ExportRefusedError(f"the export would not be exact:\n{reasons}")
