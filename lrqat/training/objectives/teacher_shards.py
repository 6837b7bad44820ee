"""The files of a teacher cache, each of which proves by itself what it holds.

The header of a shard has the key of its cache, the first of its blocks, and the sha256 of its
entries; see `lrqat.training.objectives.teacher_cache`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lrqat.atomic_files import replaced_file
from lrqat.checkpoint.manifest import sha256_of
from lrqat.errors import DataError, OutputError
from lrqat.training.objectives.cache_key import DTYPES, CacheKey

_OURS = "lrqat"  # of a shard's metadata


def write_shard(path: Path, part: range, logprobs: Tensor, ids: Tensor, key: CacheKey) -> None:
    """Write the entries of the blocks `part`. Raises OutputError."""
    said = json.dumps(_self_description(part, logprobs, ids, key))
    with replaced_file(path, overwrite=True) as staged:
        save_file({"logprobs": logprobs, "ids": ids}, staged, metadata={_OURS: said})


def _self_description(part: range, logprobs: Tensor, ids: Tensor, key: CacheKey) -> dict[str, Any]:
    digest = hashlib.sha256(logprobs.contiguous().numpy().data)
    digest.update(ids.contiguous().numpy().data)
    return key.to_json() | {"first_block": part.start, "sha256": digest.hexdigest()}


def is_written(path: Path, part: range, key: CacheKey) -> bool:
    """Whether a stopped run of the same key left this shard, and it holds what it was given.

    Raises:
        DataError: it belongs to another cache, or is no shard.
    """
    if not path.is_file():
        return False
    try:
        with safe_open(path, "pt") as file:
            recorded = json.loads((file.metadata() or {}).get(_OURS, "{}"))
            refuse_other(path, recorded, key)
            if sorted(file.keys()) != ["ids", "logprobs"]:
                return False
            logprobs, ids = file.get_tensor("logprobs"), file.get_tensor("ids")
    except (SafetensorError, ValueError) as error:
        raise DataError(
            f"{path} is no shard of a teacher cache ({error}); delete it, or give another folder"
        ) from None
    shape = (len(part), key.block_length, key.k)
    if logprobs.shape != shape or ids.shape != shape or ids.dtype != torch.int32:
        return False
    if logprobs.dtype != DTYPES[key.dtype]:
        return False
    return bool(recorded == _self_description(part, logprobs, ids, key))


def proved_sha256(path: Path, part: range, key: CacheKey) -> str:
    """sha256 of the file of a shard, which is read once more after that."""
    found = sha256_of(path)
    if not is_written(path, part, key):
        raise OutputError(
            f"{path} is not what was written there a moment ago; check the disk, and run again"
        )
    return found


def refuse_other(path: Path, recorded: Any, key: CacheKey) -> None:
    """Raise DataError if what a file says of itself is not `key`; the first difference is named."""
    for name, wanted in key.to_json().items():
        found = recorded.get(name) if isinstance(recorded, dict) else None
        if found != wanted:
            raise DataError(
                f"{path} belongs to a teacher cache with {name} {found!r}, and this run needs "
                f"{wanted!r}; give another --teacher-cache, or delete that folder"
            )
