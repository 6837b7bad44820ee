"""A model that computes with rounded weights for a while, one of them at a time in memory."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lrqat.budget.sensitivity import rounded
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.grids.grid import Grid
from lrqat.models.surgery import Target


def parameter_of(model: nn.Module, name: str, target: Target) -> nn.Parameter:
    """The parameter of a weight of a plan."""
    return model.get_parameter(name if target.kind == WeightKind.EXPERTS else f"{name}.weight")


def matrices(values: Tensor, target: Target) -> Tensor:
    """A weight as float32 matrices (count, out, in), whatever its layer keeps them as."""
    values = values.T if target.kind == WeightKind.CONV1D else values
    return values.detach().float().reshape(target.count, *target.shape)


@contextmanager
def rounding(
    model: nn.Module,
    targets: Mapping[str, Target],
    grids: Mapping[str, Grid],
    importance: Mapping[str, Tensor],
) -> Iterator[None]:
    """Inside, every weight of `grids` is its rounded self whenever its module runs.

    Args:
        model: a causal LM in full precision, left as it was.
        targets: name -> the weight's place in the plan.
        grids: name -> grid.
        importance: name -> (count, in) importance of its input channels.
    """
    with ExitStack() as stack:
        for name, grid in grids.items():
            target = targets[name]
            by_parameter = target.kind == WeightKind.EXPERTS
            own, attribute = name.rpartition(".")[::2] if by_parameter else (name, "weight")
            swap = _Swap(target, grid, importance[name], attribute)
            for module in {own, target.tied_to or own}:
                swap.watch(model.get_submodule(module), stack)
        yield


class _Swap:
    """Rounds one weight before its module runs, and takes it back afterwards."""

    def __init__(self, target: Target, grid: Grid, importance: Tensor, attribute: str) -> None:
        self._target, self._grid, self._importance = target, grid, importance
        self._attribute = attribute
        self._original: Tensor | None = None

    def watch(self, module: nn.Module, stack: ExitStack) -> None:
        stack.callback(module.register_forward_pre_hook(self._round).remove)
        stack.callback(module.register_forward_hook(self._restore, always_call=True).remove)

    def _round(self, module: nn.Module, args: Any) -> None:
        parameter = getattr(module, self._attribute)
        self._original = parameter.data
        originals = matrices(parameter.data, self._target)
        made = torch.stack(
            [
                rounded(matrix, self._grid, importance)
                for matrix, importance in zip(originals, self._importance, strict=True)
            ]
        )
        flat = made[0] if self._target.kind != WeightKind.EXPERTS else made
        flat = flat.T if self._target.kind == WeightKind.CONV1D else flat
        parameter.data = flat.to(parameter.dtype).contiguous()

    def _restore(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._original is not None:
            getattr(module, self._attribute).data = self._original
            self._original = None
