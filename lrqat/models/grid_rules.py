"""What the user asks for, weight by weight: a grid, or to stay unquantized.

Rules come from five places. A later one overrules an earlier one, and `--keep` overrules all:

    default         a grid of the embedding and the head
    --recipe        patterns of a file, or of one of llama-quantize's mixes
    roles           --embedding-grid and --head-grid
    --grid-for      patterns
    --keep          patterns

A tied embedding and head is one weight under two names, which all rules for either reach.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lrqat.errors import UserError
from lrqat.grids.grid import Grid, find_grid
from lrqat.recipes.recipe import UNQUANTIZED, Recipe

EMBEDDING_FLAG, HEAD_FLAG = "--embedding-grid", "--head-grid"
_FLAGS = _PATTERNS, _KEEP = "--grid-for", "--keep"
_RECIPE = "--recipe"


@dataclass(frozen=True)
class Rule:
    """A pattern and the grid it asks for.

    Attributes:
        pattern: what is searched for in names of modules.
        grid: None leaves what it matches unquantized.
        flag: the option that it comes from.
        used: names that it matched so far.
        refused: names that it matches in vain, and why.
    """

    pattern: re.Pattern[str]
    grid: Grid | None
    flag: str
    used: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The pattern as the user wrote it."""
        return self.pattern.pattern

    @property
    def must_match(self) -> bool:
        """Whether a pattern that matches nothing is a mistake; what names roles never is."""
        return self.flag in _FLAGS

    def reason(self) -> str:
        """Why what it matches stays unquantized."""
        return f"matches {self.flag} {self.text!r}" if self.must_match else f"{self.flag} none"


@dataclass(frozen=True)
class Rules:
    """All rules of a plan, the weakest first.

    Attributes:
        patterns: those of `--grid-for` and `--keep`.
        recipe: weaker than they are.
        embedding: grid that `--embedding-grid` names, "none", or None if it is not given.
        head: the same for `--head-grid`.
        default: grid of the embedding and the head where no rule reaches them.
    """

    patterns: tuple[Rule, ...]
    recipe: Recipe | None = None
    embedding: str | None = None
    head: str | None = None
    default: str | None = None

    @classmethod
    def of(
        cls,
        keep: Iterable[str] = (),
        grid_for: Mapping[str, str] | None = None,
        embedding: str | None = None,
        head: str | None = None,
        recipe: Recipe | None = None,
        default: str | None = None,
    ) -> "Rules":
        """Read patterns and names of grids. Raises UserError or GridError for wrong ones."""
        asked = (grid_for or {}).items()
        rules = [_rule(text, find_grid(name), _PATTERNS) for text, name in asked]
        rules += [_rule(text, None, _KEEP) for text in keep]
        for name in (embedding, head, default):
            _named(name or UNQUANTIZED)
        return cls(tuple(rules), recipe, embedding, head, default)

    def reaching(self, names: list[str], *, embedding: bool, head: bool) -> list[Rule]:
        """The rules that reach a weight, the strongest last.

        Args:
            names: of the weight; two if it is tied.
            embedding: whether it is the embedding.
            head: whether it is the output head.

        Raises:
            UserError: the embedding and the head are one weight, and two grids are asked for.
        """
        found = [rule for rule in self.patterns if any(rule.pattern.search(n) for n in names)]
        of = {flag: [rule for rule in found if rule.flag == flag] for flag in _FLAGS}
        asked = (EMBEDDING_FLAG, self.embedding, embedding), (HEAD_FLAG, self.head, head)
        roles = [_role(flag, name) for flag, name, reached in asked if reached and name is not None]
        default = [_role("default", self.default)] if self.default and (embedding or head) else []
        # Of a tied weight the recipe may know either name.
        known = [grid for name in names if (grid := self.recipe and self.recipe.grid_of(name))]
        recipe = [_role(_RECIPE, known[-1])] if known else []
        if embedding and head:
            _refuse_two(names, roles)
            _refuse_two(names, of[_PATTERNS])
        return [*default, *recipe, *roles, *of[_PATTERNS], *of[_KEEP]]


def _refuse_two(names: list[str], rules: list[Rule]) -> None:
    if len({rule.grid for rule in rules}) < 2:
        return
    asked = " and ".join(
        f"{rule.flag} {rule.text + '=' if rule.must_match else ''}{_name(rule.grid)}"
        for rule in rules
    )
    raise UserError(f"{' and '.join(names)} are one weight (tied), but got {asked}; give one grid")


def _name(grid: Grid | None) -> str:
    return grid.name if grid else UNQUANTIZED


def _role(flag: str, name: str) -> Rule:
    return Rule(re.compile(flag), _named(name), flag)


def _named(name: str) -> Grid | None:
    return None if name == UNQUANTIZED else find_grid(name)


def _rule(text: str, grid: Grid | None, flag: str) -> Rule:
    try:
        return Rule(re.compile(text), grid, flag)
    except re.error as error:
        raise UserError(f"{flag} {text!r} is not a regular expression: {error}") from None
