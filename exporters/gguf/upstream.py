"""Architectures without an entry here: llama.cpp's own converter lays the model out, we pack it.

The converter is a user's source tree of llama.cpp, unmodified, in a process of its own
(`exporters.gguf.converter_driver`). It decides names, order of rows, hyperparameters and
vocabulary; every row of a trained weight is stored with the integers and scales of the checkpoint,
or the export is refused. Afterwards the file is read back: each row of its packed tensors is one of
the checkpoint's, and none of those is missing.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

from exporters.gguf.blocks import integer_blocks
from exporters.gguf.header import read_header
from exporters.gguf.options import Options
from exporters.gguf.selection import unpack_values
from exporters.gguf.trained_rows import TrainedRows, row_keys
from lrqat.checkpoint import Checkpoint
from lrqat.errors import ExportRefusedError, OutputError

_NEEDED = ("conversion/base.py", "gguf-py/gguf/__init__.py")
_ROOT = Path(__file__).resolve().parents[2]


def refuses_converter(options: Options) -> str | None:
    """Why the converter that `options` name cannot be used, or None."""
    tree = Path(options.converter or "")
    missing = [name for name in _NEEDED if not (tree / name).is_file()]
    if missing:
        return (
            f"--converter {tree} is no source tree of llama.cpp (it has no {missing[0]}); clone "
            "github.com/ggml-org/llama.cpp, or unpack the source distribution of llama-cpp-python "
            "and name its vendor/llama.cpp"
        )
    if options.float_type not in ("auto", "f32"):
        return "a converter's floating tensors are float32 here; leave --float-type out"
    return None


def run_converter(checkpoint: Checkpoint, options: Options, path: Path) -> tuple[int, int]:
    """Write `path` and verify it.

    Returns:
        How many tensors it has, and how many of them are packed.

    Raises:
        ExportRefusedError: the converter does not know the model, or does not keep its rows.
        OutputError: the file reads back differently.
    """
    tree = Path(options.converter or "").resolve()
    # -P: what lies in the working directory is not imported.
    command = [sys.executable, "-P", "-m", "exporters.gguf.converter_driver"]
    command += [str(Path(checkpoint.path).resolve()), str(path)]
    command.append(json.dumps(asdict(replace(options, converter=None))))
    places = [str(tree / "gguf-py"), str(tree), str(_ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExportRefusedError(
            f"llama.cpp's converter in {tree} cannot convert this model: {_reason(done)}"
        )
    return verify_rows(path, checkpoint)


def verify_rows(path: Path, checkpoint: Checkpoint) -> tuple[int, int]:
    """Compare the packed rows of a file with the checkpoint's; see `run_converter`."""
    header, trained = read_header(path), TrainedRows(checkpoint)
    left, packed = set(trained.rows), 0
    for name, info in header.tensors.items():
        if len(info.shape) < 2:
            continue
        kind = info.type_name.lower()
        keys = set(row_keys(unpack_values(kind, header.rows(name))))
        if kind in integer_blocks():
            packed += 1
            if not keys <= trained.rows.keys():
                raise OutputError(f"{name} holds rows that were not trained; please report it")
        left -= keys
    if left:
        module, row = min(trained.rows[key] for key in left)
        raise ExportRefusedError(
            f"{len(left)} trained rows are not in the file, the first is row {row} of {module}; "
            "the converter left them out"
        )
    return len(header.tensors), packed


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """What the driver says, else the last line of its errors."""
    for text in (done.stdout, done.stderr):
        lines = text.strip().splitlines()
        if lines:
            try:
                return str(json.loads(lines[-1])["error"])
            except (ValueError, TypeError, KeyError):
                continue
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"
