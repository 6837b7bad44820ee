"""Which weights go on which grid.

`plan_surgery` decides, from names and shapes alone (it works on the meta device), so the user sees
everything that will and will not be quantised before any work is done; `lrqat.models.preparation`
carries the plan out. What is left unquantized is recorded with its reason, all the way into the
checkpoint: an exporter never has to decide it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lrqat.architectures import BESIDE_TEXT, ROUTERS, ROUTERS_BESIDE_EXPERTS
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.errors import ModelError, UserError
from lrqat.grids.grid import Grid, find_grid
from lrqat.models.text_part import TextPart
from lrqat.models.tying import is_tied
from lrqat.models.weight_use import misused_layers

# Reasons to leave a weight unquantized: until a pattern asks for a grid, and whatever one asks for
# (also those of `lrqat.models.weight_use`).
OUTPUT_HEAD, INPUT_EMBEDDING = "output head", "embedding"
ROUTER, WHOLE_STACK = "router", "stack of experts that its model does not take one by one"
HEAD_BIAS = "the output head is the same weight, and adds a bias to its products"


@dataclass(frozen=True)
class Target:
    """One weight, or one stack of experts' weights, that goes on a grid.

    Attributes:
        shape: (out, in); of each expert.
        grid: its grid.
        kind: what holds it in the model.
        count: matrices of that shape; more than one for experts.
        tied_to: module name of the output head that is the same weight, or None.
    """

    shape: tuple[int, int]
    grid: Grid
    kind: WeightKind
    count: int = 1
    tied_to: str | None = None

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
        spent = (t.weights * t.grid.bits_per_weight(t.shape[1]) for t in self.quantized.values())
        return sum(spent) / self.weights


@dataclass(frozen=True)
class _Found:
    """A weight matrix of the model and what is usually done with it."""

    shape: tuple[int, int]
    kind: WeightKind
    count: int = 1
    reason: str | None = None  # why it is left unquantized unless a pattern asks for it
    tied_to: str | None = None
    never: str | None = None  # why it is left unquantized whatever a pattern asks for

    @classmethod
    def of(cls, weight: Tensor, kind: WeightKind, reason: str | None, never: str | None) -> Self:
        """Of one matrix (out, in)."""
        rows, columns = weight.shape
        return cls((rows, columns), kind, 1, reason, never=never)


@dataclass(frozen=True)
class _Rule:
    """A pattern and the grid it asks for; None leaves what it matches unquantized."""

    text: str
    pattern: re.Pattern[str]
    grid: Grid | None
    flag: str
    used: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # what it matches in vain, and why


def plan_surgery(
    model: nn.Module,
    grid: str | Grid,
    keep: Iterable[str] = (),
    grid_for: Mapping[str, str] | None = None,
) -> SurgeryPlan:
    """Decide for every weight matrix of a causal language model.

    Args:
        model: a Hugging Face causal LM; nothing but names and shapes is read.
        grid: name or grid for all projections.
        keep: regular expressions; a layer whose name contains a match is left unquantized.
        grid_for: regular expression -> grid name for what it matches, the last match counts; also
            the only way to put the output head or the embedding on a grid.

    Raises:
        GridError: unknown grid.
        ModelError: the model has no projections that can be quantised.
        UserError: a pattern that matches nothing or is not a regular expression, two grids for a
            tied embedding and head, or nothing left to quantise.
    """
    default = find_grid(grid) if isinstance(grid, str) else grid
    found = dict(_find(model))
    if all(item.reason for item in found.values()):
        raise ModelError(
            f"{type(model).__name__} has no projections (nn.Linear, Conv1D or 3-D expert weights); "
            "give a causal language model of transformers"
        )
    rules = [_rule(text, None, "--keep") for text in keep]
    rules += [_rule(text, find_grid(name), "--grid-for") for text, name in (grid_for or {}).items()]
    quantized: dict[str, Target] = {}
    kept = dict.fromkeys(TextPart(model).beside(), BESIDE_TEXT)
    for rule in rules:  # a module that stays as it is may be named, a grid for it may not
        rule.used.extend(n for n in kept if rule.grid is None and rule.pattern.search(n))
    for name, item in found.items():
        wanted, reason = _decide(name, item, rules, default)
        misfit = wanted.refuses(item.shape[1]) if wanted else None
        if wanted and not misfit:
            quantized[name] = Target(item.shape, wanted, item.kind, item.count, item.tied_to)
        elif reason != INPUT_EMBEDDING:  # which nobody expects on a grid
            kept[name] = reason or misfit or ""
        if item.tied_to and name not in quantized:
            kept[item.tied_to] = OUTPUT_HEAD
    _check(found, rules, quantized, kept)
    return SurgeryPlan(default, quantized, kept)


def _decide(
    name: str, item: _Found, rules: list[_Rule], default: Grid
) -> tuple[Grid | None, str | None]:
    """(grid or None, why it is left unquantized)."""
    names = [name, *([item.tied_to] if item.tied_to else [])]
    matching = [rule for rule in rules if any(rule.pattern.search(n) for n in names)]
    if item.never:
        asking = [rule for rule in matching if rule.grid]
        for rule in asking:
            rule.refused[name] = item.never
        item = replace(item, reason=item.never if asking else item.reason or item.never)
        matching = [rule for rule in matching if rule.grid is None]
    for rule in matching:
        rule.used.append(name)
    stays = next((rule for rule in matching if rule.grid is None), None)
    if stays:
        return None, f"matches --keep {stays.text!r}"
    grids = [rule for rule in matching if rule.grid]
    if item.tied_to and len({rule.grid for rule in grids}) > 1:
        raise UserError(
            f"{name} and {item.tied_to} are one weight (tied) and {grids[0].flag} asks for "
            f"{' and '.join(f'{r.text}={r.grid.name}' for r in grids if r.grid)}; give one grid"
        )
    if grids:
        return grids[-1].grid, None
    return (None, item.reason) if item.reason else (default, None)


def _find(model: nn.Module) -> Iterator[tuple[str, _Found]]:
    """Every weight matrix of a model by name, the embedding first, each once."""
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    embedding: Any = getattr(model, "get_input_embeddings", lambda: None)()
    names = {module: name for name, module in model.named_modules()}
    tied = is_tied(model)
    text, misused = TextPart(model), misused_layers(model)
    for name, module in model.named_modules():
        if name not in text:
            continue
        never = misused.get(name)
        if isinstance(module, nn.Embedding) and module is embedding:
            tied_to = names[head] if tied else None
            if tied_to and never is None:
                has_bias = getattr(head, "bias", None) is not None
                never = misused.get(tied_to, HEAD_BIAS if has_bias else None)
            found = _Found.of(module.weight, WeightKind.EMBEDDING, INPUT_EMBEDDING, never)
            yield name, replace(found, tied_to=tied_to)
        elif module is head:
            if not tied and isinstance(module, nn.Linear):
                yield name, _Found.of(module.weight, WeightKind.LINEAR, OUTPUT_HEAD, never)
        elif _is_router(model, name):
            weight = getattr(module, "weight", None)
            if isinstance(weight, nn.Parameter) and weight.ndim == 2:
                yield name, _Found.of(weight, WeightKind.LINEAR, ROUTER, ROUTER)
        elif isinstance(module, nn.Linear):
            yield name, _Found.of(module.weight, WeightKind.LINEAR, None, never)
        elif isinstance(module, Conv1D):
            yield name, _Found.of(module.weight.T, WeightKind.CONV1D, None, never)
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
            never = None if indexed else WHOLE_STACK
            found = _Found((rows, columns), WeightKind.EXPERTS, count, never, never=never)
            yield f"{name}.{parameter}", found


def _rule(text: str, grid: Grid | None, flag: str) -> _Rule:
    try:
        return _Rule(text, re.compile(text), grid, flag)
    except re.error as error:
        raise UserError(f"{flag} {text!r} is not a regular expression: {error}") from None


def _check(
    found: dict[str, _Found],
    rules: list[_Rule],
    quantized: dict[str, Target],
    kept: dict[str, str],
) -> None:
    for rule in rules:
        if not rule.used and rule.refused:
            name, reason = next(iter(rule.refused.items()))
            raise UserError(
                f"{rule.flag} {rule.text!r} is for {name}, which stays unquantized ({reason}); "
                "leave it out"
            )
        if not rule.used:
            example = next(n for n, i in found.items() if i.kind != WeightKind.EMBEDDING)
            raise UserError(
                f"{rule.flag} {rule.text!r} matches no linear layer, embedding or expert weight; "
                f"names look like {example!r}"
            )
    if not quantized:
        reasons = "; ".join(sorted(set(kept.values())))
        raise UserError(f"nothing is left to quantise ({reasons}); choose another grid or --keep")
