"""Hidden states of all sequences between two blocks, in bfloat16: in memory, or mapped from a file.

What a block is given and what it should make of it are rounded to bfloat16, 2 bytes a token and
channel; what it computes is not.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

MOST_IN_MEMORY = 1 << 30  # bytes of one `HiddenStates`; more is mapped from a file
_BATCH_TOKENS = 4096  # run through a block at a time where there are no gradients


class HiddenStates:
    """(sequences, length, hidden), kept on the CPU.

    Args:
        shape: of all of them.
        device: where batches of them are used.
        folder: where a file goes if they are too many for memory; it is removed with them.
    """

    def __init__(self, shape: tuple[int, int, int], device: torch.device, folder: Path) -> None:
        self._device, self._file = device, None
        size = math.prod(shape)
        if 2 * size <= MOST_IN_MEMORY:
            self._values = torch.empty(shape, dtype=torch.bfloat16)
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / f"hidden-{id(self):x}.tmp"
        mapped = torch.from_file(str(self._file), shared=True, size=size, dtype=torch.bfloat16)
        self._values = mapped.view(shape)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(sequences, length, hidden)."""
        sequences, length, hidden = self._values.shape
        return sequences, length, hidden

    def batch(self, rows: Tensor | slice, dtype: torch.dtype) -> Tensor:
        """Some sequences, in `dtype`, on the device."""
        return self._values[rows].to(device=self._device, dtype=dtype)

    def batches(self, dtype: torch.dtype, most: int | None = None) -> Iterator[Tensor]:
        """The sequences of `row_slices`, as many at a time as suit a pass without gradients."""
        for rows in self.row_slices(most):
            yield self.batch(rows, dtype)

    @torch.no_grad()
    def become(self, of: Callable[[slice], Tensor]) -> None:
        """Replace all sequences, batch by batch, by `of(their rows)`."""
        for rows in self.row_slices():
            self._values[rows] = of(rows).to(device="cpu", dtype=torch.bfloat16)

    def close(self) -> None:
        """Remove the file, if there is one."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def row_slices(self, most: int | None = None) -> Iterator[slice]:
        """The sequences of each of `batches`: all, or the first of about `most` tokens."""
        step = max(1, _BATCH_TOKENS // self.shape[1])
        end = len(self) if most is None else min(len(self), max(1, most // self.shape[1]))
        return (slice(start, min(start + step, end)) for start in range(0, end, step))


@dataclass(frozen=True)
class Examples:
    """What a block learns from.

    Attributes:
        inputs: what enters it.
        targets: what it should make of that.
        begins: first tokens of sequences and documents, bool (sequences, length).
    """

    inputs: HiddenStates
    targets: HiddenStates
    begins: Tensor
