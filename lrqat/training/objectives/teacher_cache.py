"""A teacher's k most likely tokens at every position of a text, computed once and kept on disk.

    folder/shard-00000.safetensors   logprobs  float16 or float32 (blocks, length, k)
                                     ids       int32 (blocks, length, k), most likely first
    folder/shard-00001.safetensors   ...
    folder/teacher_cache.json        what the cache is of, and the sha256 of every shard

The file of the text's blocks is not in it, only their sha256: a cache belongs to one tokenised
text, one block length and one teacher, and is refused for any other. Every shard is put in place
whole and the index comes last, so a run that was stopped is continued at its first missing shard.
A shard's header says which blocks it holds and the sha256 of their entries, so one that was
damaged meanwhile, or put in another's place, is computed again and not recorded as it is.
Log-probabilities are nats of the full softmax, before anything was left out. What is computed from
them is in `lrqat.training.objectives.losses.TopKTargets`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from lrqat.atomic_files import replaced_file, write_json
from lrqat.checkpoint.manifest import sha256_of
from lrqat.errors import DataError, UserError
from lrqat.evaluation.perplexity import Progress
from lrqat.foreign_files import read_json
from lrqat.models.split import Split, split_or_whole
from lrqat.training.data.blocks import TokenBlocks
from lrqat.training.objectives.cache_key import DTYPES, CacheKey
from lrqat.training.objectives.teacher_shards import (
    is_written,
    proved_sha256,
    refuse_other,
    write_shard,
)

FILE_NAME = "teacher_cache.json"
_CHUNK_LOGITS = 1 << 24  # 64 MB in float32


class TeacherCache:
    """A complete cache, read block by block.

    Attributes:
        folder: where it is.
        key: what it is of.
    """

    def __init__(self, folder: Path, key: CacheKey) -> None:
        self.folder, self.key = folder, key
        self._names = [name for name, _ in key.shards()]

    @classmethod
    def open(cls, folder: Path, key: CacheKey) -> "TeacherCache":
        """Open a cache and verify every shard.

        Raises:
            DataError: there is no complete cache, it is of something else, or it was altered.
        """
        if not is_complete(folder, key):
            raise DataError(f"{folder} holds no complete teacher cache; write it first")
        recorded = _read_index(folder / FILE_NAME)["shards"]
        for name, _ in key.shards():
            path = folder / name
            if not path.is_file() or sha256_of(path) != recorded.get(name):
                raise DataError(
                    f"{path} is missing, or is not what was written; delete it and {FILE_NAME}, "
                    "and run again to compute it anew"
                )
        return cls(folder, key)

    def __getitem__(self, block: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities (length, k) and ids int32 (length, k) of one block."""
        shard, row = divmod(block, self.key.blocks_per_shard)
        # Opened for each block: a handle would not survive into a data loader's worker.
        with safe_open(self.folder / self._names[shard], "pt") as file:
            return file.get_slice("logprobs")[row], file.get_slice("ids")[row]


class CachedBlocks(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Blocks of text with the teacher's targets.

    A row is input_ids int64 (length,), teacher_logprobs (length, k), teacher_ids int32 (length, k).
    """

    def __init__(self, blocks: TokenBlocks, cache: TeacherCache) -> None:
        self.blocks, self.cache = blocks, cache

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        logprobs, ids = self.cache[index]
        return self.blocks[index] | {"teacher_logprobs": logprobs, "teacher_ids": ids}


def is_complete(folder: Path, key: CacheKey) -> bool:
    """Whether `folder` holds all of a cache of `key`; then no teacher is needed.

    Raises:
        DataError: it holds a cache of something else, named with both values, or a damaged index.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return False
    refuse_other(path, _read_index(path), key)
    return True


def write_cache(
    folder: Path,
    key: CacheKey,
    blocks: TokenBlocks,
    model: Any,
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> None:
    """Run the teacher over the text and write what is not there yet.

    One process writes; others wait for it.

    Args:
        folder: of the cache; made if need be. A complete cache of `key` is left as it is.
        key: from `CacheKey.of`.
        blocks: the text that `key` was made from.
        model: the teacher, a causal LM in evaluation mode.
        batch_size: blocks at a time.
        progress: wraps the iterable of batches (for one: `tqdm.tqdm`).

    Raises:
        DataError: the folder holds a cache, or a part of one, of something else.
        UserError: the teacher's vocabulary is not the key's.
        OutputError: the disk is full or not writable, or gives back other bytes than were written.
    """
    if is_complete(folder, key):
        return
    missing = [(n, part) for n, part in key.shards() if not is_written(folder / n, part, key)]
    batches = [
        (name, part, range(start, min(start + batch_size, part.stop)))
        for name, part in missing
        for start in range(part.start, part.stop, batch_size)
    ]
    halves: Split | None = None
    done: list[tuple[Tensor, Tensor]] = []
    for name, part, rows in progress(batches) if progress else batches:
        tokens = blocks.tokens[rows.start : rows.stop].astype(np.int64)
        input_ids = torch.from_numpy(tokens).to(model.device)
        halves = halves or _split(model, input_ids, key)
        positions = blocks.positions(slice(rows.start, rows.stop))
        apart = None if positions is None else positions.to(model.device)
        done.append(_most_likely(halves, input_ids, apart, key))
        if rows.stop == part.stop:
            logprobs, ids = (torch.cat(parts) for parts in zip(*done, strict=True))
            write_shard(folder / name, part, logprobs, ids, key)
            done = []
    shards = {name: proved_sha256(folder / name, part, key) for name, part in key.shards()}
    with replaced_file(folder / FILE_NAME, overwrite=False) as path:
        write_json(path, key.to_json() | {"shards": shards})


def _split(model: Any, input_ids: Tensor, key: CacheKey) -> Split:
    halves = split_or_whole(model, input_ids)
    if halves.vocabulary != key.vocabulary:
        raise UserError(
            f"the teacher has a vocabulary of {halves.vocabulary} and the model one of "
            f"{key.vocabulary}; distillation needs the same tokenizer"
        )
    return halves


@torch.no_grad()
def _most_likely(
    halves: Split, input_ids: Tensor, positions: Tensor | None, key: CacheKey
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and ids of a batch, each (batch, length, k), on the CPU."""
    features = halves.features(input_ids, positions).flatten(0, 1)
    parts = []
    for chunk in features.split(max(1, _CHUNK_LOGITS // key.vocabulary)):
        logits = halves.logits(chunk)
        values, ids = F.log_softmax(logits, -1, dtype=torch.float32).topk(key.k)
        parts.append((values.to(DTYPES[key.dtype]).cpu(), ids.int().cpu()))
    shape = (*input_ids.shape, key.k)
    logprobs, ids = (torch.cat(part).view(shape) for part in zip(*parts, strict=True))
    return logprobs, ids


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = read_json(path)
    except UserError as error:
        raise DataError(
            f"{path} cannot be read ({error}); delete it, and run again to write it anew"
        ) from None
    if not isinstance(index, dict) or not isinstance(index.get("shards"), dict):
        raise DataError(f"{path} is not the index of a teacher cache; give another folder")
    return index
