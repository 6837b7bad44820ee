"""Which weights go on which grid.

`plan_surgery` decides, from names and shapes alone (it works on the meta device), so the user sees
everything that will and will not be quantised before any work is done; `lrqat.models.preparation`
carries the plan out. What is left unquantized is recorded with its reason, all the way into the
checkpoint: an exporter never has to decide it.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from lrqat.architectures import BESIDE_TEXT, ROUTERS, ROUTERS_BESIDE_EXPERTS
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.errors import ModelError, UserError
from lrqat.grids.grid import Grid, find_grid
from lrqat.grids.misfits import NEXT, REFUSE, fitting, refused
from lrqat.models.grid_rules import Rule, Rules
from lrqat.models.text_part import TextPart
from lrqat.models.tying import is_tied
from lrqat.recipes.recipe import Recipe

# Reasons to leave a weight unquantized: until a pattern asks for a grid, and whatever one asks for.
OUTPUT_HEAD, INPUT_EMBEDDING = "output head", "embedding"
ROUTER, WHOLE_STACK = "router", "stack of experts that its model does not take one by one"
_NEVER = (ROUTER, WHOLE_STACK)


@dataclass(frozen=True)
class Target:
    """One weight, or one stack of experts' weights, that goes on a grid.

    Attributes:
        shape: (out, in); of each expert.
        grid: its grid.
        kind: what holds it in the model.
        count: matrices of that shape; more than one for experts.
        tied_to: module name of the output head that is the same weight, or None.
        asked: the grid that was asked for, where the rows did not fit it; else None.
    """

    shape: tuple[int, int]
    grid: Grid
    kind: WeightKind
    count: int = 1
    tied_to: str | None = None
    asked: Grid | None = None

    @property
    def is_layer(self) -> bool:
        """Whether it is the one matrix of a layer, whose input can be measured and rounded."""
        return self.kind in (WeightKind.LINEAR, WeightKind.CONV1D)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.count * self.shape[0] * self.shape[1]

    @property
    def groups(self) -> int:
        """Number of scales."""
        return self.count * self.shape[0] * self.grid.groups(self.shape[1])

    @property
    def bits_per_weight(self) -> float:
        """Scales and offsets included."""
        return self.grid.bits_per_weight(self.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of integers, scales and offsets, packed."""
        return math.ceil(self.weights * self.bits_per_weight / 8)


@dataclass(frozen=True)
class SurgeryPlan:
    """What will happen to every weight matrix.

    Attributes:
        grid: the grid of what no pattern names.
        quantized: module name (of a stack of experts: parameter name) -> what goes on which grid.
        kept: module name -> why it is left unquantized; of what text never reaches, the outermost.
    """

    grid: Grid
    quantized: dict[str, Target]
    kept: dict[str, str]

    @property
    def weights(self) -> int:
        """Number of weights that go on a grid."""
        return sum(target.weights for target in self.quantized.values())

    @property
    def ignored(self) -> list[str]:
        """`kept` as compressed-tensors names it: modules, and patterns for all inside one."""
        return sorted(
            f"re:^{re.escape(name)}(\\.|$)" if reason == BESIDE_TEXT else name
            for name, reason in self.kept.items()
        )

    @property
    def bits_per_weight(self) -> float:
        """Mean over all weights that go on a grid, scales included."""
        spent = (t.weights * t.bits_per_weight for t in self.quantized.values())
        return sum(spent) / self.weights


@dataclass(frozen=True)
class _Found:
    """A weight matrix of the model and what is usually done with it."""

    shape: tuple[int, int]
    kind: WeightKind
    count: int = 1
    reason: str | None = None  # why it is left unquantized unless a pattern asks for it
    tied_to: str | None = None


def plan_surgery(
    model: nn.Module,
    grid: str | Grid,
    keep: Iterable[str] = (),
    grid_for: Mapping[str, str] | None = None,
    *,
    embedding_grid: str | None = None,
    head_grid: str | None = None,
    embedding_and_head: str | None = None,
    recipe: Recipe | None = None,
    misfit: str = NEXT,
) -> SurgeryPlan:
    """Decide for every weight matrix of a causal language model.

    Args:
        model: a Hugging Face causal LM; nothing but names and shapes is read.
        grid: name or grid for all projections.
        keep: regular expressions; a layer whose name contains a match is left unquantized.
        grid_for: regular expression -> grid name for what it matches, the last match counts.
        embedding_grid: grid of the embedding; "none" leaves it unquantized.
        head_grid: grid of the output head, likewise; of a tied one, either of the two is enough.
        embedding_and_head: grid of both where nothing else reaches them; None: unquantized.
        recipe: grids of what its rules name, overruled by all of the others.
        misfit: what becomes of rows that do not fit their grid, see `lrqat.grids.misfits`.

    Raises:
        GridError: unknown grid.
        ModelError: the model has no projections that can be quantised.
        UserError: a pattern that matches nothing or is not a regular expression, two grids for a
            tied embedding and head, a misfit that is refused, or nothing left to quantise.
    """
    default = find_grid(grid) if isinstance(grid, str) else grid
    found = dict(_find(model))
    if all(item.reason for item in found.values()):
        raise ModelError(
            f"{type(model).__name__} has no projections (nn.Linear, Conv1D or 3-D expert weights); "
            "give a causal language model of transformers"
        )
    rules = Rules.of(keep, grid_for, embedding_grid, head_grid, recipe, embedding_and_head)
    made = SurgeryPlan(default, {}, dict.fromkeys(TextPart(model).beside(), BESIDE_TEXT))
    for rule in rules.patterns:  # a module that stays as it is may be named, a grid for it may not
        rule.used.extend(n for n in made.kept if rule.grid is None and rule.pattern.search(n))
    for name, item in found.items():
        wanted, reason = _decide(name, item, rules, default)
        _place(made, name, item, wanted, reason, misfit)
    _check(found, rules.patterns, made)
    return made


def weight_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> (out, in), or (experts, out, in), of every weight that can be on a grid."""
    return {
        name: item.shape if item.kind != WeightKind.EXPERTS else (item.count, *item.shape)
        for name, item in _find(model)
        if item.reason not in _NEVER
    }


def _place(
    made: SurgeryPlan, name: str, item: _Found, wanted: Grid | None, reason: str, misfit: str
) -> None:
    """Enter a weight into the plan, on the grid that is wanted or on the next that it fits."""
    grid = wanted
    if wanted and (refusal := wanted.refuses(item.shape[1])):
        instead = fitting(wanted, item.shape[1])
        if misfit == REFUSE:
            raise refused(name, refusal, instead)
        grid, reason = (instead if misfit == NEXT else None), refusal
    if grid:
        asked = wanted if grid is not wanted else None
        made.quantized[name] = Target(
            item.shape, grid, item.kind, item.count, item.tied_to, asked=asked
        )
    elif reason != INPUT_EMBEDDING:  # which the checkpoint's list of what stays does not have
        made.kept[name] = reason
    if item.tied_to and not grid:
        made.kept[item.tied_to] = OUTPUT_HEAD


def _decide(name: str, item: _Found, rules: Rules, default: Grid) -> tuple[Grid | None, str]:
    """(grid or None, why it is left unquantized)."""
    names = [name, *([item.tied_to] if item.tied_to else [])]
    matching = rules.matching(
        names,
        embedding=item.kind == WeightKind.EMBEDDING,
        head=bool(item.tied_to) or item.reason == OUTPUT_HEAD,
        movable=item.reason not in _NEVER,
    )
    if matching:
        rule = matching[-1]
        by_default = item.reason if not rule.must_match else None
        return rule.grid, "" if rule.grid else by_default or rule.reason()
    return (None, item.reason) if item.reason else (default, "")


def _find(model: nn.Module) -> Iterator[tuple[str, _Found]]:
    """Every weight matrix of a model by name, the embedding first, each once."""
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    embedding: Any = getattr(model, "get_input_embeddings", lambda: None)()
    names = {module: name for name, module in model.named_modules()}
    tied = is_tied(model)
    text = TextPart(model)
    for name, module in model.named_modules():
        if name not in text:
            continue
        if isinstance(module, nn.Embedding) and module is embedding:
            shape, tied_to = _pair(module.weight.shape), names[head] if tied else None
            yield name, _Found(shape, WeightKind.EMBEDDING, 1, INPUT_EMBEDDING, tied_to)
        elif module is head:
            if not tied and isinstance(module, nn.Linear):
                yield name, _Found(_pair(module.weight.shape), WeightKind.LINEAR, 1, OUTPUT_HEAD)
        elif _is_router(model, name):
            weight = getattr(module, "weight", None)
            if isinstance(weight, nn.Parameter) and weight.ndim == 2:
                yield name, _Found(_pair(weight.shape), WeightKind.LINEAR, 1, ROUTER)
        elif isinstance(module, nn.Linear):
            yield name, _Found(_pair(module.weight.shape), WeightKind.LINEAR)
        elif isinstance(module, Conv1D):
            rows, columns = _pair(module.weight.shape)
            yield name, _Found((columns, rows), WeightKind.CONV1D)
        else:
            yield from _stacks(name, module)


def _is_router(model: nn.Module, name: str) -> bool:
    """Whether a module chooses experts, or is part of one that does."""
    parts = name.split(".")
    return not ROUTERS.isdisjoint(parts) or any(
        part in ROUTERS_BESIDE_EXPERTS
        and hasattr(model.get_submodule(".".join(parts[:i])), "experts")
        for i, part in enumerate(parts)
    )


def _stacks(name: str, module: nn.Module) -> Iterator[tuple[str, _Found]]:
    """3-D parameters of a module of experts, each matrix (out, in)."""
    if not type(module).__name__.endswith("Experts"):
        return
    # Set by `use_experts_implementation` of transformers, whose eager code indexes its weights;
    # the others multiply the whole stack at once, or keep it as (experts, in, out).
    indexed = getattr(module, "is_transposed", None) is False
    for parameter, value in module.named_parameters(recurse=False):
        if value.ndim == 3:
            count, rows, columns = value.shape
            reason = None if indexed else WHOLE_STACK
            yield f"{name}.{parameter}", _Found((rows, columns), WeightKind.EXPERTS, count, reason)


def _pair(shape: Iterable[int]) -> tuple[int, int]:
    rows, columns = shape
    return rows, columns


def _check(found: dict[str, _Found], rules: Iterable[Rule], made: SurgeryPlan) -> None:
    for rule in rules:
        if rule.must_match and not rule.used:
            example = next(n for n, i in found.items() if i.kind != WeightKind.EMBEDDING)
            raise UserError(
                f"{rule.flag} {rule.text!r} matches no linear layer, embedding or expert weight; "
                f"names look like {example!r}"
            )
    if not made.quantized:
        reasons = "; ".join(sorted(set(made.kept.values())))
        raise UserError(f"nothing is left to quantise ({reasons}); choose another grid or --keep")
