"""Rates in units that carry over from one model to another.

A rate of 1e-4 is much for a scale of 0.01 and little for one of 0.3, what a change of A does to V
depends on the widths, and what a change of a scale does to a weight on how many steps from zero
that is. So every rate counts the steps of the grid by which weights move:

    A      when every entry of A moves by its rate:
           rate x grid step / (alpha/r  root of r  rms of B)
    B      as many times its own size: rate x rms of B x `_B_SHARE`
    s      when a scale does: rate x mean |s| x grid step / rms of the integers
    o      a minimum moves them as it moves: rate x mean |s| x grid step
    norms  as many times what they multiply by: rate x mean gain x `_NORM_SHARE`

Adam moves every entry by about its rate in each step, whatever the size of the gradient.
"""

import math
from collections.abc import Iterator

from torch import Tensor, nn

from lrqat.layers.norms import thawed_norms
from lrqat.layers.weight import QuantizedWeight

_B_SHARE = 8.0
_NORM_SHARE = 4.0
# A factor is rounded to a power of this, so that the optimiser has few groups of parameters.
_BASE = math.sqrt(2)


def rate_factors(model: nn.Module) -> dict[str, float]:
    """What the rates of trained parameters are multiplied by, by the parameter's name.

    Parameters that are not named keep the rate as it is: those of plain LoRA and whole weights.

    Args:
        model: a prepared model; A, B and the scales are where training begins.
    """
    return {name: _rounded(unit) for name, unit in units_in(model).items()}


def units_in(model: nn.Module) -> dict[str, float]:
    """What a rate of 1 is worth to each trained parameter, by name; thawed, V for A and B."""
    found = {name: _NORM_SHARE * gain for name, _, gain in thawed_norms(model)}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedWeight):
            prefix = f"{name}." if name else ""
            found |= {f"{prefix}{own}": unit for own, unit in _units(module)}
    return found


def _units(weight: QuantizedWeight) -> Iterator[tuple[str, float]]:
    rank = weight.lora_b.shape[0]
    if weight.thawed:
        yield "phi", weight.grid.step
    elif rank:
        size = _rms(weight.lora_b)
        moved = abs(weight.scaling) * math.sqrt(rank) * size
        yield "lora_a", weight.grid.step / moved if moved else 1.0
        yield "lora_b", _B_SHARE * size
    step = _mean(weight.scale) * weight.grid.step
    yield "scale", step / max(_rms(weight.integers().float()), weight.grid.step)
    if weight.minimum is not None:
        yield "minimum", step


def _rms(values: Tensor) -> float:
    return float(values.detach().square().mean().sqrt())


def _mean(values: Tensor) -> float:
    return float(values.detach().abs().mean())


def _rounded(factor: float) -> float:
    return float(_BASE ** round(math.log(factor, _BASE))) if factor > 0 else 1.0
