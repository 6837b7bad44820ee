"""Training text as blocks of tokens, and which of them are learned."""

import numpy as np
import torch
from numpy.typing import NDArray

from lrqat.errors import DataError
from lrqat.models.documents import positions_of

# A run keeps at most this many tokens in memory, or as many as it will look at: 256 MB.
MOST_TOKENS = 1 << 26


class TokenBlocks(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Blocks of `length` tokens.

    A row is "input_ids" int64 (length,), and where some tokens are only read, "loss_weights"
    float32 (length,): of what each position predicts, 0 or one value for all. That value is such
    that their mean over all blocks is 1: every learned token then counts the same in a run, however
    many its batch has. Where documents share a block and are kept apart, a row also is
    "position_ids" int64 (length,), which start anew with each.

    Attributes:
        tokens: int32 (blocks, length).
        learned: bool (blocks, length), tokens whose prediction is learned; None: all are.
        starts: bool (blocks, length), first tokens of documents that are kept apart; None: none is.
    """

    def __init__(
        self,
        tokens: NDArray[np.int32],
        length: int,
        learned: NDArray[np.bool_] | None = None,
        starts: NDArray[np.bool_] | None = None,
    ) -> None:
        count = len(tokens) // length
        self.tokens = tokens[: count * length].reshape(-1, length)
        self.learned = None if learned is None else learned[: count * length].reshape(-1, length)
        self.starts = None if starts is None else starts[: count * length].reshape(-1, length)
        # The first token of a block is predicted by nothing.
        self._share = 1.0 if self.learned is None else float(self.learned[:, 1:].sum())
        self._share /= 1.0 if self.learned is None else self.tokens.size

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = {"input_ids": torch.from_numpy(self.tokens[index].astype(np.int64))}
        if self.learned is not None:
            weights = np.zeros(self.tokens.shape[1], np.float32)
            weights[:-1] = self.learned[index, 1:] / np.float32(max(self._share, 1e-9))
            row["loss_weights"] = torch.from_numpy(weights)
        positions = self.positions(slice(index, index + 1))
        return row if positions is None else row | {"position_ids": positions[0]}

    def positions(self, rows: slice) -> torch.Tensor | None:
        """Positions int64 (blocks, length) of some blocks; None where they just run on."""
        return None if self.starts is None else positions_of(torch.from_numpy(self.starts[rows]))

    @property
    def begins(self) -> torch.Tensor:
        """First tokens of blocks, and of documents that are kept apart: bool (blocks, length)."""
        starts = np.zeros(self.tokens.shape, bool) if self.starts is None else self.starts.copy()
        starts[:, :1] = True
        return torch.from_numpy(starts)

    def first(self, count: int) -> "TokenBlocks":
        """The first `count` blocks."""
        return self.take(np.arange(min(count, len(self))))

    def take(self, rows: NDArray[np.int64]) -> "TokenBlocks":
        """The blocks `rows`, in that order."""
        masks = (None if m is None else m[rows].reshape(-1) for m in (self.learned, self.starts))
        return TokenBlocks(self.tokens[rows].reshape(-1), self.tokens.shape[1], *masks)


def refuse_too_short(tokens: int, length: int) -> None:
    """Raise DataError for a text of less than one block."""
    if tokens < length:
        raise DataError(
            f"the training text has {tokens} tokens, less than one sequence of {length}; give more "
            "text, or a smaller --sequence-length"
        )
