"""Rounding the inputs of chosen layers of a model, in place, with hooks.

    attach(model, grid, names, ranges)         before training, after `lrqat.models.surgery.prepare`
    described, tensors = describe(model)       what a checkpoint must record
    detach(model)                              the model as it was
    attach_described(model, described, tensors)   the same rounding on another copy of the model

A quantiser stands in front of a layer's input as its child `activation_quantizer`, whatever the
class of the layer. Layers that share an input (q, k and v; gate and up) each round it themselves,
to the same values as long as their ranges are the same.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lrqat.activations.grids import ActivationRange, quantize, stored_ranges
from lrqat.activations.table import ActivationGrid, find_activation_grid
from lrqat.errors import CheckpointError, GridError

CHILD = "activation_quantizer"
SCALE, ZERO_POINT = ".input_scale", ".input_zero_point"  # compressed-tensors' names


class ActivationQuantizer(nn.Module):
    """Rounds what passes through to a grid.

    Attributes:
        grid: a row of `lrqat.activations.grids.ACTIVATION_GRIDS`.
        scale: static grids: float32 (); a parameter if learned, else a buffer. Otherwise None.
        zero_point: likewise; rounded to an integer in every forward.
        hook: set by `attach`, removed by `detach`.
    """

    scale: Tensor | None
    zero_point: Tensor | None
    hook: RemovableHandle

    def __init__(
        self,
        grid: ActivationGrid,
        ranges: ActivationRange | None = None,
        *,
        learn_scale: bool = False,
        learn_zero_point: bool = False,
    ) -> None:
        """Make one; `ranges` and the learning of them are for static grids alone.

        Raises:
            GridError: ranges missing for a static grid, or given to another.
        """
        super().__init__()
        if grid.static != (ranges is not None):
            needs = "needs ranges; calibrate first" if grid.static else "measures its own ranges"
            raise GridError(f"the activation grid {grid.name} {needs}")
        self.grid = grid
        learned = {"scale": learn_scale, "zero_point": learn_zero_point}
        for name, learn in learned.items():
            value = None if ranges is None else getattr(ranges, name).detach().float().clone()
            if learn and value is not None:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        """Round x (..., in) to the grid, in the dtype of x."""
        return quantize(x, self.grid, self._ranges())

    @torch.no_grad()
    def ranges(self) -> ActivationRange | None:
        """The range as it ships: float32 s and an integer z, or None where it is dynamic."""
        ranges = self._ranges()
        return None if ranges is None else stored_ranges(ranges, self.grid)

    def _ranges(self) -> ActivationRange | None:
        if self.scale is None or self.zero_point is None:
            return None
        return ActivationRange(self.scale, self.zero_point)

    def extra_repr(self) -> str:
        """The grid, for print(model)."""
        return self.grid.name


def attach(
    model: nn.Module,
    grid: ActivationGrid,
    names: Iterable[str],
    ranges: Mapping[str, ActivationRange] | None = None,
    *,
    learn_scale: bool = False,
    learn_zero_point: bool = False,
) -> None:
    """Round the input of every module of `names` from now on. Nothing else requires gradients.

    Args:
        model: any module; `names` are those of its `named_modules`.
        grid: the grid of the inputs.
        names: usually the quantised projections.
        ranges: of a static grid, by name, from `lrqat.activations.ranges.calibrate`.
        learn_scale: make static scales parameters.
        learn_zero_point: make static zero-points parameters.

    Raises:
        GridError: a layer whose inputs do not fit the grid, or has no range; nothing is attached.
        ValueError: a module that has a quantiser already; detach it first.
    """
    names = list(names)
    for name in names:
        module = model.get_submodule(name)
        if hasattr(module, CHILD):
            raise ValueError(f"{name} rounds its input already; call detach first")
        _check(name, module, grid, ranges)
    for name in names:
        module = model.get_submodule(name)
        quantizer = ActivationQuantizer(
            grid,
            ranges[name] if ranges is not None else None,
            learn_scale=learn_scale,
            learn_zero_point=learn_zero_point,
        )
        tensor = next(module.parameters(), None)
        module.add_module(CHILD, quantizer if tensor is None else quantizer.to(tensor.device))
        quantizer.hook = module.register_forward_pre_hook(_round_input)


def detach(model: nn.Module) -> None:
    """Undo `attach` everywhere in `model`."""
    for name, quantizer in list(quantizers(model)):
        quantizer.hook.remove()
        delattr(model.get_submodule(name), CHILD)


def quantizers(model: nn.Module) -> Iterator[tuple[str, ActivationQuantizer]]:
    """Name of the layer and quantiser, for every layer whose input is rounded."""
    for name, module in model.named_modules():
        quantizer = getattr(module, CHILD, None)
        if isinstance(quantizer, ActivationQuantizer):
            yield name, quantizer


def describe(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What it takes to attach the same rounding again.

    Returns:
        For JSON: {"modules": {name: grid name}}; and for the tensor file of static grids:
        {name + ".input_scale", name + ".input_zero_point"}: float32 (), on the CPU.
    """
    modules: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, quantizer in quantizers(model):
        modules[name] = quantizer.grid.name
        ranges = quantizer.ranges()
        if ranges is not None:
            tensors[name + SCALE] = ranges.scale.cpu()
            tensors[name + ZERO_POINT] = ranges.zero_point.cpu()
    return {"modules": modules}, tensors


def attach_described(
    model: nn.Module, described: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Attach what `describe` returned, frozen. For a reference model.

    Raises:
        CheckpointError: not what `describe` writes, or it does not belong to `model`.
        GridError: an unknown grid.
    """
    modules = described.get("modules")
    if not isinstance(modules, dict):
        raise CheckpointError(f"the record of activations has no modules: {str(described)[:200]}")
    known = {name for name, _ in model.named_modules()}
    for name, grid_name in modules.items():
        if name not in known or not isinstance(grid_name, str):
            raise CheckpointError(
                f"the record of activations rounds the input of {name!r} to {grid_name!r}, and the "
                f"{type(model).__name__} has no such layer; they do not belong together"
            )
        grid = find_activation_grid(grid_name)
        ranges = {name: _read_ranges(name, grid, tensors)} if grid.static else None
        attach(model, grid, [name], ranges)


def _read_ranges(name: str, grid: ActivationGrid, tensors: Mapping[str, Tensor]) -> ActivationRange:
    found = [tensors.get(name + suffix) for suffix in (SCALE, ZERO_POINT)]
    scale, zero_point = map(_number, found)
    if not 0 < scale < float("inf") or zero_point not in range(grid.q_max + 1):
        raise CheckpointError(
            f"the record of activations has no valid {SCALE[1:]} and {ZERO_POINT[1:]} for {name}: "
            f"{scale}, {zero_point}; restore the checkpoint, or train again"
        )
    return ActivationRange(torch.tensor(scale), torch.tensor(zero_point))


def _number(tensor: Tensor | None) -> float:
    """The one number of `tensor`; NaN where there is not exactly one."""
    return float(tensor) if tensor is not None and tensor.numel() == 1 else float("nan")


def _check(
    name: str, module: nn.Module, grid: ActivationGrid, ranges: Mapping[str, ActivationRange] | None
) -> None:
    in_features = getattr(module, "in_features", None)
    reason = grid.refuses(in_features) if isinstance(in_features, int) else None
    if reason:
        raise GridError(f"{name}: {reason}; choose other --activations or --keep {name!r}")
    if ranges is not None and name not in ranges:
        raise GridError(f"{name} has no range for {grid.name}; calibrate it with the others")


def _round_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    # The quantiser is looked up, not closed over, so that a deep copy of the model uses its own.
    if getattr(module, "exact", False):  # inside lrqat.layers.modes.full_precision
        return args
    quantizer = getattr(module, CHILD)
    return (quantizer(args[0]), *args[1:])
