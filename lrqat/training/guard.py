"""Steps that must not be taken: a loss or a gradient that is not finite.

One bad batch in bfloat16 need not end a run: its step is skipped and counted. Several in a row mean
that training has diverged, and no later step will repair it.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lrqat.training.states.sharding import full

MOST_IN_A_ROW = 5


class StepGuard:
    """Decides, the same on every rank, whether an optimiser step is taken.

    Attributes:
        skipped: steps skipped since the run began; kept over a resumption.
        in_a_row: of these, how many were the last ones.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self.in_a_row = 0
        self._bad_loss: Tensor | None = None
        self._last_loss: Tensor | None = None

    @property
    def diverged(self) -> bool:
        """Whether so many steps in a row were skipped that training should stop."""
        return self.in_a_row >= MOST_IN_A_ROW

    def watch(self, loss: Tensor) -> Tensor:
        """Note whether the loss of a micro-batch is finite, without waiting for the device.

        Args:
            loss: scalar, detached.

        Returns:
            The loss to log: `loss`, or in place of one that is not finite the last that was (NaN if
            there was none), so that one bad batch does not hide the average of the others.
        """
        finite = torch.isfinite(loss)
        self._bad_loss = ~finite if self._bad_loss is None else self._bad_loss | ~finite
        last = torch.full_like(loss, torch.nan) if self._last_loss is None else self._last_loss
        self._last_loss = torch.where(finite, loss, last)
        return self._last_loss

    def admit(self, parameters: Iterable[nn.Parameter], norm: Tensor | float) -> bool:
        """Judge a step once its gradients are complete; drop them if it must not be taken.

        An optimiser passes over a parameter without a gradient, so a skipped step leaves the
        parameters and the optimiser's moments as they are. With several ranks, all of them must
        call this: a step that is bad on one is skipped on all.

        Args:
            parameters: the trained ones.
            norm: of all their gradients, before clipping.
        """
        total = full(torch.as_tensor(norm).detach())
        bad = ~torch.isfinite(total)
        if self._bad_loss is not None:
            bad = bad | self._bad_loss.to(bad.device)
        self._bad_loss = None
        if not _any_rank(bad):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        for parameter in parameters:
            parameter.grad = None
        return False

    def to_json(self) -> dict[str, Any]:
        """What a saved state keeps."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_json(self, saved: dict[str, Any]) -> None:
        """Take over the counts of a saved state."""
        self.skipped, self.in_a_row = int(saved["skipped"]), int(saved["in_a_row"])


def _any_rank(flag: Tensor) -> bool:
    if dist.is_available() and dist.is_initialized():
        flag = flag.to(torch.int32)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())
