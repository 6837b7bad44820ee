"""lrqat.json: what a fused checkpoint says of itself beyond what Hugging Face folders can say.

The file is written last, so a folder without it is not a checkpoint, and it holds the sha256 of
every other file, so an altered or truncated checkpoint cannot be mistaken for a good one. It is the
list of what is read, too: a file that it does not name does not exist.

Schema (version 1), every key required unless marked:

    format       "lrqat-checkpoint"
    version      1
    tool         {"name", "version", "git_commit" or null}
    tensors      {module name: {"grid": name, "shape": [out, in],      the quantised weights
                  "kind": a `WeightKind`, "linear" if it is missing}}
    kept         {module name: reason}                                 what was left unquantized
    activations  (optional) {"modules": {module name: activation grid}, "kv_bits": 4, 8 or null}:
                 what was rounded in training beside the weights
    base_model   {"name", "revision" or null, "dtype"}, and what its card says, if it has one:
                 "license", "license_name", "license_link", "languages", "repository"
    training     free-form provenance: data, sha256, seed, steps, tokens, rates, method; of what is
                 on somebody's disk the name, not the path
    reference    (optional) {"perplexity", "standard_error", "tokens", "context", "rule",
                 "data", "data_sha256"}: the fake-quant model measured in PyTorch at the end; if
                 they were measured, "base_perplexity", and "kl" and "same_top" with "teacher"
    files        {file name: {"sha256", "bytes"}}, names relative to the folder with forward slashes
    accepted     (optional) [file name]: tokenizer files that are not those of the training any more
"""

import hashlib
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
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


def names_in(folder: Path) -> list[str]:
    """Names of all files in a folder and the folders in it, relative to it, sorted."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def describe_files(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """The `files` entry of a manifest for the files `names` of `folder`."""
    return {
        name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
        for name in sorted(names)
    }


def names_only(value: Any) -> Any:
    """`value` with every text that is a path on this machine cut to its last part.

    What is published says which text and which models it comes from, not where they lay.
    """
    if isinstance(value, dict):
        return {key: names_only(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [names_only(each) for each in value]
    if isinstance(value, str) and _is_local(value):
        return PureWindowsPath(value).name or Path(value).resolve().name
    return value


def _is_local(text: str) -> bool:
    """Whether a text is a path: an absolute one, or what is there; not an id on the hub."""
    if PureWindowsPath(text).is_absolute() or text.startswith(("/", "~", "./", "../", ".\\")):
        return True
    with suppress(OSError, ValueError):
        return text in (".", "..") or ("/" in text and Path(text).exists())
    return False


def is_inside(name: str) -> bool:
    """Whether a name stays in the folder that it is relative to."""
    parts = PurePosixPath(name).parts
    plain = bool(parts) and PurePosixPath(*parts).as_posix() == name and "\\" not in name
    return plain and not name.startswith("/") and ".." not in parts and ":" not in parts[0]
