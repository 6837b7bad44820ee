"""The steps of one block: its weights, thawed, learn what the full-precision block does.

    loss = mean over tokens of  |y - t|^2 / |t|^2         y, t (tokens, hidden)

Relative for each token: the first tokens of a text have states a hundred times larger than the
others, and would be all that counts. Straight-through on all entries of V; Adam with rates in
steps of the grid, warm-up and a cosine to zero.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lrqat.errors import NonFiniteLossError
from lrqat.layers.weight import QuantizedWeight
from lrqat.training import processes
from lrqat.training.blocks.states import HiddenStates
from lrqat.training.rates import units_of
from lrqat.training.stage_settings import BLOCK_BATCH, StageSettings

_WARM_UP = 0.1
_HELD_OUT_TOKENS = 2048  # at the end of the text; the block is measured on them


@dataclass(frozen=True)
class Fit:
    """What the steps of a block gave: mean relative squared errors of text that was held out.

    Attributes:
        before: of the block as it was rounded.
        after: of the block as it is.
    """

    before: float
    after: float


def fit_block(
    run: Callable[[Tensor, Tensor | slice], Tensor],
    weights: list[QuantizedWeight],
    inputs: HiddenStates,
    targets: HiddenStates,
    settings: StageSettings,
    seed: int,
    dtype: torch.dtype,
    between_steps: Callable[[], None] = lambda: None,
) -> Fit:
    """Train thawed weights, in place; where they only got worse, they stay as they began.

    Args:
        run: the block, (batch, length, hidden) of some sequences, and which, to the same.
        weights: those of the block.
        inputs: what enters it.
        targets: what it should make of that.
        settings: steps and rates.
        seed: of the order of the text.
        dtype: compute type.
        between_steps: called after each; what it raises passes.

    Raises:
        NonFiniteLossError: the loss is not finite.
    """
    held_out = slice(len(inputs) - _rows(inputs, _HELD_OUT_TOKENS), len(inputs))

    def error(rows: Any) -> Tensor:
        made = run(inputs.batch(rows, dtype), rows)
        return relative_error(made, targets.batch(rows, dtype))

    with torch.no_grad():
        before = float(error(held_out))
    start = [parameter.detach().clone() for parameter in _parameters(weights)]
    optimizer = torch.optim.Adam(_groups(weights, settings), betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _Cosine(settings.block_steps))
    for rows in _order(inputs, held_out.start, settings.block_steps, seed):
        loss = error(rows)
        _refuse_not_finite(loss)
        optimizer.zero_grad()
        loss.backward()
        _average(weights)
        optimizer.step()
        schedule.step()
        between_steps()
    with torch.no_grad():
        after = float(error(held_out))
        if not after <= before:
            for parameter, value in zip(_parameters(weights), start, strict=True):
                parameter.copy_(value)
    return Fit(before, min(before, after))


def relative_error(made: Tensor, target: Tensor) -> Tensor:
    """Mean over tokens of |made - target|^2 / |target|^2, both (..., hidden); float32."""
    difference = (made.float() - target.float()).square().mean(-1)
    size = target.float().square().mean(-1)
    return (difference / size.clamp(min=torch.finfo(torch.float32).tiny)).mean()


class _Cosine:
    """The share of the peak rate at a step: up in a tenth of the steps, down along a cosine."""

    def __init__(self, steps: int) -> None:
        self._steps, self._warm_up = steps, max(1, round(_WARM_UP * steps))

    def __call__(self, step: int) -> float:
        down = 0.5 * (1 + math.cos(math.pi * step / max(1, self._steps)))
        return min((step + 1) / self._warm_up, down)


def _groups(weights: list[QuantizedWeight], settings: StageSettings) -> list[dict[str, Any]]:
    """The parameters with rates in their own units."""
    rates, groups = {"phi": settings.block_learning_rate}, []
    for weight in weights:
        units = units_of(weight)
        for name, parameter in weight.trained().items():
            if parameter.requires_grad:
                peak = rates.get(name, settings.block_scale_learning_rate)
                groups.append({"params": [parameter], "lr": peak * units[name]})
    return groups


def _parameters(weights: list[QuantizedWeight]) -> Iterator[Tensor]:
    for weight in weights:
        yield from (p for p in weight.trained().values() if p.requires_grad)


def _order(inputs: HiddenStates, count: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Rows of every step, among the first `count`; each process gets its own part of them."""
    generator = torch.Generator().manual_seed(seed)
    size = min(_rows(inputs, BLOCK_BATCH), max(1, count))
    waiting = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(waiting) < size * processes.count():
            waiting = torch.cat([waiting, torch.randperm(max(1, count), generator=generator)])
        own = waiting[processes.rank() * size :][:size]
        waiting = waiting[size * processes.count() :]
        yield own


def _rows(inputs: HiddenStates, tokens: int) -> int:
    return max(1, min(tokens // inputs.shape[1], len(inputs) // 2))


def _average(weights: list[QuantizedWeight]) -> None:
    """The mean of all processes' gradients."""
    if processes.count() == 1:
        return
    for parameter in _parameters(weights):
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        parameter.grad /= processes.count()


def _refuse_not_finite(loss: Tensor) -> None:
    if not torch.isfinite(loss):
        raise NonFiniteLossError(
            "the loss of a block is not finite in the block-wise stage; start again with a lower "
            "--block-learning-rate, or with --stages model"
        )
