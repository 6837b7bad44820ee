"""Architectures without an entry here: llama.cpp's own converter lays the model out, we pack it.

The converter is a user's source tree of llama.cpp, unmodified, in a process of its own
(`exporters.gguf.converter.driver`). It decides names, order of rows, hyperparameters and
vocabulary; every row of a trained weight is stored with the integers and scales of the checkpoint,
or the export is refused. Afterwards the file is read back: each row of its packed tensors is one of
the checkpoint's, and none of those is missing.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

from exporters.gguf.blocks import float_blocks, integer_blocks
from exporters.gguf.converter.trained_rows import Row, TrainedRows, row_keys
from exporters.gguf.file.header import Header, read_header
from exporters.gguf.file.shards import read_model
from exporters.gguf.options import Options
from exporters.gguf.provenance import CONVERTER
from exporters.gguf.tensors.packing import unpack_values
from lrqat.checkpoint.listed import listed_folder
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import ExportRefusedError, OutputError

_NEEDED = ("conversion/base.py", "gguf-py/gguf/__init__.py")
_ROOT = Path(__file__).resolve().parents[3]


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
    for name in ("float_type", "embedding_type", "head_type"):
        if getattr(options, name) not in ("auto", "f32"):
            flag = f"--{name.replace('_', '-')}"
            return f"what is unquantized is float32 in a converter's file; leave {flag} out"
    if options.split_max_size is not None:
        return "a converter's file is not split here; leave --split-max-size out"
    return None


def twin_options(path: str | Path, converter: str | None) -> Options:
    """Options for another export like the file `path`, with every tensor F32.

    Args:
        path: an exported file.
        converter: llama.cpp's source tree, for a file that its own converter laid out.

    Raises:
        ExportRefusedError: that is needed and not given.
    """
    said = read_model(Path(path)).metadata
    if CONVERTER not in said:
        return Options(type="f32")
    if converter is None:
        raise ExportRefusedError(
            f"{path} was laid out by llama.cpp's own converter, which has to make its F32 twin "
            "too; name the source tree with --converter"
        )
    return Options(type="f32", converter=converter, pre=said.get("tokenizer.ggml.pre"))


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
    command = [sys.executable, "-P", "-m", "exporters.gguf.converter.driver"]
    asked = json.dumps(asdict(replace(options, converter=None)))
    places = [str(tree / "gguf-py"), str(tree), str(_ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    with listed_folder(checkpoint.path) as folder:  # it reads whatever lies there
        command += [str(folder), str(path), asked]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExportRefusedError(
            f"llama.cpp's converter in {tree} cannot convert this model: {_reason(done)}"
        )
    return verify_rows(path, checkpoint)


def verify_rows(path: Path, checkpoint: Checkpoint) -> tuple[int, int]:
    """Compare the packed rows of a file with the checkpoint's; see `run_converter`."""
    header = read_header(path)
    foreign, left = _compare_rows(header, checkpoint)
    for name, count in foreign.items():
        if count:
            raise OutputError(f"{name} holds rows that were not trained; please report it")
    if left:
        module, row = min(left)
        raise ExportRefusedError(
            f"{len(left)} trained rows are not in the file, the first is row {row} of {module}; "
            "the converter left them out"
        )
    return len(header.tensors), len(foreign)


def mismatching_rows(header: Header, checkpoint: Checkpoint) -> dict[str, int]:
    """Rows of packed tensors that are none of the checkpoint's, and trained ones that are missing.

    For files that a converter laid out: what of its names and its order of rows belongs where, only
    the converter knows.

    Returns:
        By tensor the rows that were not trained; by module the rows that are not in the file.
    """
    foreign, left = _compare_rows(header, checkpoint)
    return foreign | Counter(module for module, _ in left)


def _compare_rows(header: Header, checkpoint: Checkpoint) -> tuple[dict[str, int], set[Row]]:
    """Rows of each packed tensor that were not trained, and trained rows that no tensor has."""
    trained = TrainedRows(checkpoint).rows
    left, foreign = set(trained), {}
    for name, info in header.tensors.items():
        type_name = info.type_name.lower()
        if len(info.shape) < 2 or type_name not in {**integer_blocks(), **float_blocks()}:
            continue
        keys = list(row_keys(unpack_values(type_name, header.tensors[name].read())))
        if type_name in integer_blocks():
            foreign[name] = sum(key not in trained for key in keys)
        left -= set(keys)
    return foreign, {trained[key] for key in left}


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
