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


def rounded_values(
    parameter: nn.Parameter, target: Target, grid: Grid, importance: Tensor
) -> Tensor:
    """A weight rounded to a grid, in its own shape and dtype.

    Args:
        parameter: the weight, as its layer keeps it.
        target: its place in the plan.
        grid: its grid.
        importance: (count, in) of its input channels.
    """
    pairs = zip(matrices(parameter.data, target), importance, strict=True)
    made = torch.stack([rounded(matrix, grid, of_matrix) for matrix, of_matrix in pairs])
    flat = made if target.kind == WeightKind.EXPERTS else made[0]
    flat = flat.T if target.kind == WeightKind.CONV1D else flat
    return flat.to(parameter.dtype).contiguous()


@contextmanager
def rounding(
    model: nn.Module,
    targets: Mapping[str, Target],
    grids: Mapping[str, Grid],
    importance: Mapping[str, Tensor],
) -> Iterator[None]:
    """Inside, every weight of `grids` is its rounded self while its module runs.

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


@contextmanager
def all_rounded(
    model: nn.Module,
    targets: Mapping[str, Target],
    grids: Mapping[str, Grid],
    importance: Mapping[str, Tensor],
) -> Iterator[None]:
    """The same for many runs: rounded once, which takes the memory of a second model."""
    originals = {}
    try:
        for name, grid in grids.items():
            parameter = parameter_of(model, name, targets[name])
            originals[name] = parameter.data
            parameter.data = rounded_values(parameter, targets[name], grid, importance[name])
        yield
    finally:
        for name, original in originals.items():
            parameter_of(model, name, targets[name]).data = original


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
        made = rounded_values(parameter, self._target, self._grid, self._importance)
        self._original, parameter.data = parameter.data, made

    def _restore(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._original is not None:
            getattr(module, self._attribute).data = self._original
            self._original = None
