"""Which linear layers go on a grid, and putting them there.

`plan_surgery` decides, from names and shapes alone (it works on the meta device), so the user sees
everything that will and will not be quantised before any work is done. `prepare` carries the plan
out. What stays in floating point is recorded with its reason, all the way into the checkpoint: an
exporter never has to decide it.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lrqat.downcast import DOWNCASTS
from lrqat.errors import ModelError, UserError
from lrqat.grid import Grid, find_grid
from lrqat.layer import LRQATLinear
from lrqat.range_init import RANGE_INITS

OUTPUT_HEAD = "output head"
DEFAULT_FACTOR = 16  # alpha / r, see lrqat.config


@dataclass(frozen=True)
class SurgeryPlan:
    """What will happen to every linear layer.

    Attributes:
        grid: the grid of the quantised layers.
        quantized: module name -> (out, in).
        kept: module name -> why it stays in floating point.
    """

    grid: Grid
    quantized: dict[str, tuple[int, int]]
    kept: dict[str, str]

    @property
    def weights(self) -> int:
        """Number of weights that go on the grid."""
        return sum(
            out_features * in_features for out_features, in_features in self.quantized.values()
        )

    @property
    def scales(self) -> int:
        """Number of scales."""
        return sum(out * self.grid.groups(columns) for out, columns in self.quantized.values())


def plan_surgery(model: nn.Module, grid: str | Grid, keep: Iterable[str] = ()) -> SurgeryPlan:
    """Decide for every `nn.Linear` of a causal language model.

    Args:
        model: a Hugging Face causal LM; nothing but names and shapes is read.
        grid: name or grid for all projections.
        keep: regular expressions; a layer whose name contains a match stays in floating point.

    Raises:
        GridError: unknown grid, or a grid that holds no layer at all.
        ModelError: the model has no `nn.Linear` projections.
        UserError: a pattern of `keep` that matches nothing or is not a regular expression.
    """
    grid = find_grid(grid) if isinstance(grid, str) else grid
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    patterns = _compile(keep)
    quantized: dict[str, tuple[int, int]] = {}
    kept: dict[str, str] = {}
    for name, linear in linears.items():
        matching = (pattern.pattern for pattern in patterns if pattern.search(name))
        pattern = next(matching, None)
        reason = grid.refuses(linear.in_features)
        if linear is head:
            kept[name] = OUTPUT_HEAD
        elif pattern is not None:
            kept[name] = f"matches --keep {pattern!r}"
        elif reason:
            kept[name] = reason
        else:
            quantized[name] = (linear.out_features, linear.in_features)
    _check(model, patterns, linears, quantized, kept)
    return SurgeryPlan(grid, quantized, kept)


def prepare(
    model: nn.Module,
    plan: SurgeryPlan,
    *,
    rank: int = 32,
    alpha: float | None = None,
    phi: str = "fp32",
    range_init: str = "lp",
    p: float = 4.0,
    progress: Any = None,
) -> nn.Module:
    """Replace the planned layers by `LRQATLinear`, in place, and freeze everything else.

    Layers are converted one at a time and the original weight is dropped at once, so beside the
    model only one layer's copy exists.

    Args:
        model: the model that `plan` was made for, with its weights.
        plan: from `plan_surgery`.
        rank: r, columns of A and rows of B.
        alpha: the update is (alpha / r) A B; None means alpha = 16 r.
        phi: form of the frozen weights, a name in `lrqat.downcast.DOWNCASTS`.
        range_init: start scales, a name in `lrqat.range_init.RANGE_INITS`.
        p: exponent of the L_p search.
        progress: wraps the iterable of names (for one: `tqdm.tqdm`); None shows nothing.

    Returns:
        `model`, where only A, B and s require gradients.

    Raises:
        ModelError: a weight is not finite.
    """
    model.requires_grad_(False)
    names: Iterable[str] = list(plan.quantized)
    for name in progress(names) if progress else names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        if not torch.isfinite(linear.weight).all():
            raise ModelError(
                f"{name}.weight holds NaN or infinity; use an intact copy of the model"
            )
        scale = RANGE_INITS[range_init](linear.weight, plan.grid, p)
        model.set_submodule(
            name,
            LRQATLinear.from_linear(
                linear,
                scale,
                grid=plan.grid,
                downcast=DOWNCASTS[phi],
                rank=rank,
                alpha=float(DEFAULT_FACTOR * rank if alpha is None else alpha),
            ),
        )
    return model


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, LRQATLinear]]:
    """Name and layer of every `LRQATLinear` of a prepared model."""
    return ((name, m) for name, m in model.named_modules() if isinstance(m, LRQATLinear))


def _compile(keep: Iterable[str]) -> list[re.Pattern[str]]:
    patterns = []
    for text in keep:
        try:
            patterns.append(re.compile(text))
        except re.error as error:
            raise UserError(f"--keep {text!r} is not a regular expression: {error}") from None
    return patterns


def _check(
    model: nn.Module,
    patterns: list[re.Pattern[str]],
    linears: dict[str, nn.Linear],
    quantized: dict[str, tuple[int, int]],
    kept: dict[str, str],
) -> None:
    if not set(linears) - {name for name, reason in kept.items() if reason == OUTPUT_HEAD}:
        raise ModelError(
            f"{type(model).__name__} has no nn.Linear projections; models built on other layers "
            "(GPT-2's Conv1D, fused expert tensors) cannot be quantised by this version"
        )
    for pattern in patterns:
        if not any(pattern.search(name) for name in linears):
            raise UserError(
                f"--keep {pattern.pattern!r} matches no linear layer; names look like "
                f"{next(iter(linears))!r}"
            )
    if not quantized:
        reasons = "; ".join(sorted(set(kept.values())))
        raise UserError(f"nothing is left to quantise ({reasons}); choose another grid or --keep")
