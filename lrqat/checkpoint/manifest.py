"""lrqat.json: what a fused checkpoint says of itself beyond what Hugging Face folders can say.

The file is written last, so a folder without it is not a checkpoint, and it holds the sha256 of
every other file, so an altered or truncated checkpoint cannot be mistaken for a good one.

Schema (version 1), every key required unless marked:

    format       "lrqat-checkpoint"
    version      1
    tool         {"name", "version", "git_commit" or null}
    tensors      {module name: {"grid": name, "shape": [out, in],      the quantised weights
                  "kind": a `WeightKind`, "linear" if it is missing}}
    kept         {module name: reason}                                 what was left unquantized
    activations  (optional) {"modules": {module name: activation grid}, "kv_bits": 4, 8 or null}:
                 what was rounded in training beside the weights
    base_model   {"name", "revision" or null, "dtype"}
    training     free-form provenance: data, sha256, seed, steps, tokens, rates, method
    reference    (optional) {"perplexity", "standard_error", "tokens", "context", "rule",
                 "data", "data_sha256"}: the fake-quant model measured in PyTorch at the end
    files        {file name: {"sha256", "bytes"}}
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lrqat.errors import CheckpointError
from lrqat.foreign_files import parse_json, read_bytes

FILE_NAME = "lrqat.json"
FORMAT = "lrqat-checkpoint"
VERSION = 1
_REQUIRED = {"tool": dict, "tensors": dict, "kept": dict, "base_model": dict, "files": dict}


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in pieces so that memory does not grow with it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`. Raises CheckpointError if it is missing, unreadable or foreign."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is not a fused checkpoint: it has no {FILE_NAME}. "
            "Train one with `lrqat train`, or check the path"
        )
    try:
        manifest = parse_json(read_bytes(path))
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not valid JSON ({error}); restore it, or train again"
        ) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} does not describe an lrqat checkpoint")
    if manifest.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has format version {manifest.get('version')!r} and this lrqat reads "
            f"{VERSION}; use the lrqat that wrote it ({manifest.get('tool')})"
        )
    for key, kind in _REQUIRED.items():
        if not isinstance(manifest.get(key), kind):
            raise CheckpointError(f"{path} lacks a valid {key!r}; restore it, or train again")
    for name, entry in manifest["tensors"].items():
        if not _is_valid(entry):
            raise CheckpointError(f"{path} has no valid entry for {name!r}; restore it")
    return manifest


def _is_valid(entry: Any) -> bool:
    """Whether an entry of `tensors` names a grid and a shape (out, in)."""
    if not (isinstance(entry, dict) and isinstance(entry.get("grid"), str)):
        return False
    shape = entry.get("shape")
    if not (isinstance(shape, list) and len(shape) == 2):
        return False
    return all(type(size) is int and size > 0 for size in shape)


def describe_files(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """The `files` entry of a manifest for the files `names` of `folder`."""
    return {
        name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
        for name in sorted(names)
    }


def verify_files(folder: Path, files: dict[str, Any]) -> None:
    """Compare every file of a manifest with what is on disk.

    Raises CheckpointError naming the first file that is missing, of another size, or altered.
    """
    with ThreadPoolExecutor() as pool:  # sha256 lets go of Python's lock
        for _ in pool.map(lambda item: _verify_file(folder, *item), files.items()):
            pass


def _verify_file(folder: Path, name: str, expected: Any) -> None:
    path = folder / name
    if Path(name).name != name or not isinstance(expected, dict):
        raise CheckpointError(f"{folder / FILE_NAME} names {name!r}, which is not a file name")
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; restore it, or train again")
    size = path.stat().st_size
    if size != expected.get("bytes"):
        raise CheckpointError(
            f"{path} has {size} bytes where {expected.get('bytes')} were written: it is "
            "truncated or altered; restore it, or train again"
        )
    if sha256_of(path) != expected.get("sha256"):
        raise CheckpointError(
            f"{path} does not match the sha256 in {FILE_NAME}: it was altered after "
            "training; restore it, or train again"
        )
