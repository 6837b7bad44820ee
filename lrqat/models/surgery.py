"""Which weights go on which grid.

`plan_surgery` decides, from names and shapes alone (it works on the meta device), so the user sees
everything that will and will not be quantised before any work is done; `lrqat.models.preparation`
carries the plan out. What is left unquantized is recorded with its reason, all the way into the
checkpoint: an exporter never has to decide it.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from lrqat.architectures import BESIDE_TEXT
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.errors import ModelError, UserError
from lrqat.grids.grid import Grid, find_grid
from lrqat.grids.misfits import NEXT, REFUSE, fitting, refused
from lrqat.models.grid_rules import Rule, Rules
from lrqat.models.matrices import INPUT_EMBEDDING, OUTPUT_HEAD, Matrix, find_matrices
from lrqat.models.text_part import TextPart
from lrqat.recipes.recipe import Recipe

_SETTLED_BITS = 8


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
        settles: whether it is an embedding or head beside projections in fewer than 8 bits.
    """

    shape: tuple[int, int]
    grid: Grid
    kind: WeightKind
    count: int = 1
    tied_to: str | None = None
    asked: Grid | None = None
    settles: bool = False

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
    def settled(self) -> bool:
        """Whether rounding to nearest is as good as it gets: an embedding or head in 8 bits.

        The rates that move projections in fewer bits would only do harm to it.
        """
        return self.settles and self.grid.bits >= _SETTLED_BITS

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
    found = dict(find_matrices(model))
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
        for name, item in find_matrices(model)
        if not item.never
    }


def _place(
    made: SurgeryPlan, name: str, item: Matrix, wanted: Grid | None, reason: str, misfit: str
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
        is_either = item.kind == WeightKind.EMBEDDING or item.reason == OUTPUT_HEAD
        settles = is_either and made.grid.bits < _SETTLED_BITS
        made.quantized[name] = Target(
            item.shape, grid, item.kind, item.count, item.tied_to, asked=asked, settles=settles
        )
    elif reason != INPUT_EMBEDDING:  # which the checkpoint's list of what stays does not have
        made.kept[name] = reason
    if item.tied_to and not grid:
        made.kept[item.tied_to] = OUTPUT_HEAD


def _decide(name: str, item: Matrix, rules: Rules, default: Grid) -> tuple[Grid | None, str]:
    """(grid or None, why it is left unquantized)."""
    names = [name, *([item.tied_to] if item.tied_to else [])]
    matching = rules.reaching(
        names,
        embedding=item.kind == WeightKind.EMBEDDING,
        head=bool(item.tied_to) or item.reason == OUTPUT_HEAD,
    )
    reason = item.reason or item.never
    if item.never:
        for rule in matching:
            if rule.grid:
                rule.refused[name], reason = item.never, item.never
        matching = [rule for rule in matching if rule.grid is None]
    for rule in matching:
        rule.used.append(name)
    if matching:
        rule = matching[-1]
        by_default = reason if not rule.must_match else None
        return rule.grid, "" if rule.grid else by_default or rule.reason()
    return (None, reason) if reason else (default, "")


def _check(found: dict[str, Matrix], rules: Iterable[Rule], made: SurgeryPlan) -> None:
    for rule in rules:
        if not rule.used and rule.refused:
            name, reason = next(iter(rule.refused.items()))
            raise UserError(
                f"{rule.flag} {rule.text!r} is for {name}, which stays unquantized ({reason}); "
                "leave it out"
            )
        if rule.must_match and not rule.used:
            example = next(n for n, i in found.items() if i.kind != WeightKind.EMBEDDING)
            raise UserError(
                f"{rule.flag} {rule.text!r} matches no linear layer, embedding or expert weight; "
                f"names look like {example!r}"
            )
    if not made.quantized:
        reasons = "; ".join(sorted(set(made.kept.values())))
        raise UserError(f"nothing is left to quantise ({reasons}); choose another grid or --keep")
