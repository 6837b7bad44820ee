"""What a teacher cache is of, and how that divides into files."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from lrqat.errors import UserError
from lrqat.training.data.blocks import TokenBlocks

_FORMAT = {"format": "lrqat-teacher-cache", "version": 1}
_SHARD_BYTES = 1 << 28
# float16 holds 11 bits of a log-probability: one of -8 is off by 0.004 at most.
DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class CacheKey:
    """What a cache is of; two caches with the same key hold the same.

    Attributes:
        teacher: name of the model, and whatever tells its versions apart (a revision, a hash).
        k: tokens a position.
        vocabulary: logits a position.
        dtype: of the log-probabilities, a key of `DTYPES`.
        blocks: blocks of the text.
        block_length: tokens a block.
        tokens_sha256: of the blocks' tokens, little-endian int32, and of where documents start
            if they are kept apart.

    Raises:
        UserError: k or the dtype is out of range, on construction.
    """

    teacher: str
    k: int
    vocabulary: int
    dtype: str
    blocks: int
    block_length: int
    tokens_sha256: str

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.vocabulary:
            raise UserError(
                f"--teacher-top-k {self.k} must be between 1 and the vocabulary's {self.vocabulary}"
            )
        if self.dtype not in DTYPES:
            raise UserError(
                f"a teacher cache of {self.dtype!r} is not known; choose {', '.join(DTYPES)}"
            )

    @classmethod
    def of(
        cls, blocks: TokenBlocks, *, teacher: str, k: int, vocabulary: int, dtype: str = "float16"
    ) -> "CacheKey":
        """The key of a cache of `blocks`."""
        tokens = np.ascontiguousarray(blocks.tokens, dtype="<i4")
        digest = hashlib.sha256(tokens.data)
        if blocks.starts is not None:  # the same tokens with other predictions
            digest.update(np.packbits(blocks.starts).tobytes())
        return cls(teacher, k, vocabulary, dtype, *blocks.tokens.shape, digest.hexdigest())

    @property
    def bytes(self) -> int:
        """Size on disk, less the headers: 6 bytes an entry in float16, 8 in float32."""
        return self.blocks * self._block_bytes

    @property
    def blocks_per_shard(self) -> int:
        """Blocks in every shard but the last: about 256 MB."""
        return max(1, _SHARD_BYTES // self._block_bytes)

    @property
    def _block_bytes(self) -> int:
        return self.block_length * self.k * (DTYPES[self.dtype].itemsize + 4)

    def shards(self) -> Iterator[tuple[str, range]]:
        """File name and blocks of every shard."""
        for number, start in enumerate(range(0, self.blocks, self.blocks_per_shard)):
            stop = min(start + self.blocks_per_shard, self.blocks)
            yield f"shard-{number:05}.safetensors", range(start, stop)

    def to_json(self) -> dict[str, Any]:
        """All fields, with the format."""
        return _FORMAT | asdict(self)
