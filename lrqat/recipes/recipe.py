"""What a recipe is: patterns of module names in order, and the grid that each asks for.

A pattern is a regular expression that is searched in the name of a module, as `--grid-for` does it,
and **the last one that is found counts**: first what holds for most, then the exceptions. The grid
`none` leaves a weight unquantized.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from lrqat.errors import GridError, RecipeError
from lrqat.grids.grid import find_grid
from lrqat.recipes.patterns import MOST_WAYS, ways

UNQUANTIZED = "none"
_LONGEST_NAME = 64  # of a grid; what is longer is none, and is not quoted whole


@dataclass(frozen=True)
class Rule:
    """One pattern.

    Attributes:
        pattern: regular expression, searched in names such as `model.layers.3.mlp.down_proj`,
            `model.embed_tokens`, `lm_head`.
        grid: name of a grid, or `none`; in small letters once it is here.

    Raises:
        RecipeError: the pattern is none that `lrqat.recipes.patterns` takes, or there is no such
            grid.
    """

    pattern: str
    grid: str

    def __post_init__(self) -> None:
        name = self.grid.lower()[:_LONGEST_NAME]
        try:
            object.__setattr__(self, "grid", name if name == UNQUANTIZED else find_grid(name).name)
        except GridError as error:
            raise RecipeError(
                f"the pattern {self.pattern!r:.200} asks for an {error}, and {UNQUANTIZED} for an "
                "unquantized weight"
            ) from None
        try:
            self.ways  # noqa: B018 - asked now, so that no rule exists that cannot be searched
        except ValueError as error:
            raise RecipeError(f"the pattern {self.pattern!r:.200} is refused: {error}") from None

    @cached_property
    def ways(self) -> int:
        """See `lrqat.recipes.patterns.ways`."""
        return ways(self.pattern)

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    def matches(self, module: str) -> bool:
        """Whether the pattern is found in the name of a module."""
        return self._compiled.search(module) is not None


@dataclass(frozen=True)
class Recipe:
    """Rules in order, of which the last one that matches a module counts.

    Attributes:
        rules: at least one.
        name: what it is called.
        description: what it is for.

    Raises:
        RecipeError: there are no rules, a pattern occurs twice, or together they could take for
            ever to search.
    """

    rules: tuple[Rule, ...]
    name: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        if not self.rules:
            raise RecipeError("a recipe without rules gives no weight a grid; write some")
        patterns = [rule.pattern for rule in self.rules]
        twice = next((p for i, p in enumerate(patterns) if p in patterns[:i]), None)
        if twice is not None:
            raise RecipeError(f"the pattern {twice!r:.200} occurs twice; keep the last one")
        worst = max(self.rules, key=lambda rule: rule.ways)
        if sum(rule.ways for rule in self.rules) > MOST_WAYS:
            raise RecipeError(
                f"the pattern {worst.pattern!r:.200} could match in {worst.ways:,} ways, and all "
                f"of a recipe in {MOST_WAYS:,} at most; name the layers in shorter lists"
            )

    def grid_of(self, module: str) -> str | None:
        """The grid of a module, `none` if it is left unquantized; None if no rule names it."""
        return next((rule.grid for rule in reversed(self.rules) if rule.matches(module)), None)

    def grids_of(self, modules: Iterable[str]) -> dict[str, str]:
        """Module -> grid or `none`, of the modules that a rule names."""
        found = ((module, self.grid_of(module)) for module in modules)
        return {module: grid for module, grid in found if grid is not None}

    def unused(self, modules: Iterable[str]) -> list[Rule]:
        """The rules that match none of the modules of a model."""
        names = list(modules)
        return [rule for rule in self.rules if not any(map(rule.matches, names))]
