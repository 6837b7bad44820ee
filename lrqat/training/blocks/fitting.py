"""The steps of one block: its weights, thawed, learn what the full-precision block does.

Straight-through on all entries of V; Adam with rates in steps of the grid, warm-up and a cosine to
zero. What is minimised is in `lrqat.training.blocks.loss`.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lrqat.errors import NonFiniteLossError
from lrqat.training import processes
from lrqat.training.blocks.aside import set_aside
from lrqat.training.blocks.loss import BlockLoss, block_loss
from lrqat.training.blocks.states import Examples, HiddenStates
from lrqat.training.rates import units_in
from lrqat.training.stage_settings import BLOCK_BATCH, StageSettings

_WARM_UP = 0.1
_BETAS = (0.9, 0.95)
_HELD_OUT_TOKENS = 2048  # at the end of the text; the block is measured on them


@dataclass(frozen=True)
class Fit:
    """What the steps of a block gave: its `block_loss` on text that was held out.

    Attributes:
        before: of the block as it was rounded.
        after: of the block as it is.
    """

    before: float
    after: float


def fit_block(
    run: Callable[[Tensor, Tensor | slice], Tensor],
    block: nn.Module,
    examples: Examples,
    loss_of: BlockLoss,
    settings: StageSettings,
    seed: int,
    dtype: torch.dtype,
    folder: Path,
    between_steps: Callable[[], None] = lambda: None,
) -> Fit:
    """Train a block's thawed weights and norms; where they only got worse, they stay as they were.

    Args:
        run: the block, (batch, length, hidden) of some sequences, and which, to the same.
        block: itself.
        examples: text for it.
        loss_of: what is minimised.
        settings: steps and rates.
        seed: of the order of the text.
        dtype: compute type.
        folder: where what they began with lies meanwhile.
        between_steps: called after each; what it raises passes.

    Raises:
        NonFiniteLossError: the loss is not finite.
    """
    inputs, targets = examples.inputs, examples.targets
    held_out = slice(len(inputs) - _rows(inputs, _HELD_OUT_TOKENS), len(inputs))

    def made(rows: Any) -> tuple[Tensor, Tensor, Tensor]:
        """What a loss takes."""
        output = run(inputs.batch(rows, dtype), rows)
        return output, targets.batch(rows, dtype), examples.begins[rows].to(output.device)

    @torch.no_grad()
    def errors() -> tuple[float, float]:
        """Of the text held out: what decides, and what is reported of every block alike."""
        found = made(held_out)
        return float(loss_of(*found)), float(block_loss(*found))

    before, reported = errors()
    trained = [parameter for _, parameter, _ in _trained(block)]
    with set_aside(trained, folder) as restore, _Optimizers(block, settings) as adam:
        for rows in _order(inputs, held_out.start, settings.block_steps, seed):
            loss = loss_of(*made(rows))
            _refuse_not_finite(loss)
            adam.step(loss)
            between_steps()
        after, found = errors()
        if after <= before:
            return Fit(reported, found)
        restore()
    return Fit(reported, reported)


class _Optimizers:
    """Adam for every parameter, inside a block of `with`.

    A process that is alone takes each step in the backward pass, as soon as its gradient is there,
    so that only one weight's is there at a time. Source: PyTorch's tutorial on saving memory by
    fusing the optimizer step into the backward pass.
    """

    def __init__(self, block: nn.Module, settings: StageSettings) -> None:
        self._of = dict(_adams(block, settings))
        self._peaks = [adam.param_groups[0]["lr"] for adam in self._of.values()]
        self._rate, self._done = _Cosine(settings.block_steps), 0
        self._alone, self._hooks = processes.count() == 1, []
        if self._alone:
            add = Tensor.register_post_accumulate_grad_hook
            self._hooks = [add(parameter, self._step) for parameter in self._of]

    def __enter__(self) -> "_Optimizers":
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def step(self, loss: Tensor) -> None:
        """One step down the gradient of a loss."""
        rate = self._rate(self._done)
        for adam, peak in zip(self._of.values(), self._peaks, strict=True):
            adam.param_groups[0]["lr"] = peak * rate
        loss.backward()
        if not self._alone:
            _average(self._of)
            for parameter in self._of:
                self._step(parameter)
        self._done += 1

    def _step(self, parameter: Tensor) -> None:
        self._of[parameter].step()
        parameter.grad = None


class _Cosine:
    """The share of the peak rate at a step: up in a tenth of the steps, down along a cosine."""

    def __init__(self, steps: int) -> None:
        self._steps, self._warm_up = steps, max(1, round(_WARM_UP * steps))

    def __call__(self, step: int) -> float:
        down = 0.5 * (1 + math.cos(math.pi * step / max(1, self._steps)))
        return min((step + 1) / self._warm_up, down)


def _adams(block: nn.Module, settings: StageSettings) -> Iterator[tuple[Tensor, torch.optim.Adam]]:
    """Every trained parameter, and its optimizer with a rate in its own unit."""
    rates = {"phi": settings.block_learning_rate}
    for name, parameter, unit in _trained(block):
        rate = rates.get(name.rpartition(".")[2], settings.block_scale_learning_rate)
        # fused: without temporaries as large as the weight
        yield parameter, torch.optim.Adam([parameter], lr=rate * unit, betas=_BETAS, fused=True)


def _trained(block: nn.Module) -> Iterator[tuple[str, nn.Parameter, float]]:
    """Every trained parameter of a thawed block: name, itself, and its unit."""
    for name, unit in units_in(block).items():
        parameter = block.get_parameter(name)
        if parameter.requires_grad:
            yield name, parameter, unit


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


def _average(parameters: Iterable[Tensor]) -> None:
    """The mean of all processes' gradients."""
    for parameter in parameters:
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        parameter.grad /= processes.count()


def _refuse_not_finite(loss: Tensor) -> None:
    if not torch.isfinite(loss):
        raise NonFiniteLossError(
            "the loss of a block is not finite in the block-wise stage; start again with a lower "
            "--block-learning-rate, or with --stages model"
        )
