"""The weights of norms, trained beside what is on a grid.

They stay unquantized, in the type that they are stored in, so a file is no larger for it. Source:
Norm Tweaking (Li et al., 2024), which trains nothing else.

A norm that is trained holds its parameters in float32 and computes with them rounded to their own
type: what is trained is what is written.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_PARTS = ("weight", "bias")
_ORIGINAL = "parametrizations.{}.original"


class _Stored(nn.Module):
    """A parametrization: float32 in, the same rounded to the type that is stored out."""

    like: Tensor

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        # Follows the model when that computes in float32 for a while.
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)

    def forward(self, original: Tensor) -> Tensor:
        return original.to(self._dtype).to(self.like.dtype)


def trainable_norms(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters (width,) of the norms inside a module that can be trained, by name.

    That is every norm whose output shows what it multiplies by, see `gain_of`.
    """
    return {
        f"{name}.{part}": getattr(norm, part)
        for name, norm in module.named_modules()
        if _is_norm(norm) and gain_of(norm)
        for part in _own_parts(norm)
    }


def thaw_norms(module: nn.Module) -> None:
    """Make the trainable norms inside a module trained ones."""
    for name, value in trainable_norms(module).items():
        owner, _, part = name.rpartition(".")
        stored = _Stored(value.dtype)
        parametrize.register_parametrization(module.get_submodule(owner), part, stored)
        value.data = value.data.float()  # is now the original; `right_inverse` may not widen it
    for _, original, _ in thawed_norms(module):
        original.requires_grad_(True)


def settle_norms(module: nn.Module) -> None:
    """Make trained norms ordinary ones again, of what they computed with."""
    for norm in list(module.modules()):
        for part in _PARTS:
            if _is_thawed(norm, part):
                original, value = _original(norm, part), getattr(norm, part).detach()
                parametrize.remove_parametrizations(norm, part, leave_parametrized=False)
                original.requires_grad_(False).data = value


def thawed_norms(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, float]]:
    """Every trained parameter of a norm, float32: its name, itself, and its unit.

    The unit is the mean of what the norm multiplies by.
    """
    for name, norm in module.named_modules():
        for part in _PARTS:
            if _is_thawed(norm, part):
                own = f"{name}.{_ORIGINAL.format(part)}".removeprefix(".")
                yield own, _original(norm, part), gain_of(norm)


@torch.no_grad()
def gain_of(norm: nn.Module) -> float:
    """The mean of what a norm multiplies by: |w|, or |1 + w| in Gemma's; 0: it does not say.

    Measured on +1, -1, +1 ..., whose mean is 0 and whose mean square is 1.
    """
    weight = cast(Tensor, norm.weight)
    signs = torch.ones_like(weight)[None]
    signs[:, 1::2] = -1
    try:
        made = norm(signs)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return 0.0
    if made.shape != signs.shape:
        return 0.0
    bias = cast(Tensor | None, getattr(norm, "bias", None))
    return float((made if bias is None else made - bias).float().abs().mean())


def _original(norm: nn.Module, part: str) -> nn.Parameter:
    return norm.get_parameter(_ORIGINAL.format(part))


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    plain = isinstance(weight, nn.Parameter) and weight.ndim == 1 and not weight.is_meta
    return plain and "Norm" in type(module).__name__ and not any(True for _ in module.children())


def _own_parts(norm: nn.Module) -> list[str]:
    return [part for part in _PARTS if isinstance(getattr(norm, part, None), Tensor)]


def _is_thawed(norm: nn.Module, part: str) -> bool:
    if not parametrize.is_parametrized(norm, part):
        return False
    return isinstance(cast(Any, norm.parametrizations)[part][0], _Stored)
