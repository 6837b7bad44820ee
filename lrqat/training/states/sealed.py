"""Tensors in a file that proves what it holds: a run that is continued takes it, or refuses it.

The header's metadata has a note in JSON, and the sha256 of the note and of every tensor with its
name, type and shape.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lrqat.atomic_files import replaced_file
from lrqat.errors import CheckpointError, refusing
from lrqat.foreign_files import parse_json, refuse_irregular

_OURS = "lrqat"  # of the header's metadata


def write_sealed(path: Path, tensors: Mapping[str, Tensor], note: dict[str, Any]) -> None:
    """Write tensors and a note that JSON can hold. Raises OutputError."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    said = json.dumps({"note": note, "sha256": _digest(whole, note)})
    with replaced_file(path, overwrite=True) as staging:
        save_file(whole, staging, metadata={_OURS: said})


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the note that were written.

    Raises:
        CheckpointError: the file is missing, or is not what was written.
    """
    remedy = "start anew with --overwrite"
    with refusing(CheckpointError, f"{path} was altered or damaged", remedy):
        refuse_irregular(path.parent, CheckpointError)
        with safe_open(path, "pt") as file:
            said = parse_json((file.metadata() or {})[_OURS].encode())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        note, sha256 = said["note"], said["sha256"]
        found = _digest(tensors, note)
    if sha256 != found:
        raise CheckpointError(f"{path} was altered: its sha256 is not the one in it; {remedy}")
    return tensors, note


def read_note(path: Path) -> dict[str, Any]:
    """The note alone, which is not proved without the tensors. Raises CheckpointError."""
    with (
        refusing(CheckpointError, f"{path} was altered or damaged", "start anew with --overwrite"),
        safe_open(path, "pt") as file,
    ):
        note = parse_json((file.metadata() or {})[_OURS].encode())["note"]
    return note if isinstance(note, dict) else {}


def _digest(tensors: dict[str, Tensor], note: dict[str, Any]) -> str:
    described = [[name, str(t.dtype), list(t.shape)] for name, t in sorted(tensors.items())]
    digest = hashlib.sha256(json.dumps([note, described], sort_keys=True).encode())
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
