"""The "next:" line of each command: what to type, with the paths of what was just made."""

import shlex
from pathlib import Path

from lrqat.checkpoint.publishing import RUN, STATES
from lrqat.errors import UserError

_TEXT = "TEXT"  # where it is not known what to measure on


def after_training(output: str | Path, *, in_gguf: bool) -> str:
    """Export what was trained, to GGUF where it has a form there."""
    return f"lrqat export {_quoted(output)} --format {'gguf' if in_gguf else 'onnx'}"


def after_export(checkpoint: str | Path, path: str | Path) -> str:
    """Prove what was exported."""
    data = _held_out(Path(checkpoint))
    return f"lrqat parity {_quoted(checkpoint)} {_quoted(path)} --data {_quoted(data)}"


def after_proof(path: str | Path) -> str:
    """See where it runs, and how fast it is here."""
    return f"lrqat doctor {_quoted(path)} --measure"


def _held_out(checkpoint: Path) -> str:
    """The text that the run was measured on, if its settings name one that is still there."""
    from lrqat.training.run_file import read_run

    try:
        run = read_run(checkpoint / STATES / RUN)
    except UserError:
        return _TEXT
    named = [run.get("eval_data"), *run.get("data", ())]
    texts = (str(name) for name in named if name and str(name).endswith(".txt"))
    return next((name for name in texts if Path(name).is_file()), _TEXT)


def _quoted(path: str | Path) -> str:
    return shlex.quote(str(path))
