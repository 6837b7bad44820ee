r"""Recipes as files of YAML.

    name: mine
    description: four bits, the first and last layers finer
    rules:
      _proj$: q4_k
      mlp\.down_proj: q5_k
      layers\.(0|1|28|29)\.mlp\.down_proj: q6_k
      ^lm_head$: none

`rules` is a mapping of patterns to grids, and its order counts (`lrqat.recipes.recipe`). A file may
come from anybody. It is read as a tree of texts: no object of Python is made of any tag, what is
neither a text nor such a mapping is refused, and so is a key that occurs twice.
"""

from pathlib import Path

import yaml

from lrqat import foreign_yaml
from lrqat.atomic_files.files import replaced_file
from lrqat.errors import RecipeError, did_you_mean
from lrqat.foreign_files import ForeignFileError
from lrqat.recipes.recipe import Recipe, Rule

_MOST_RULES = 1000
_RULES = "rules"
_TEXTS = ("name", "description")
_HEAD = "# The last pattern that is found in a module's name counts; none: unquantized.\n"
_REMEDY = "see docs/recipes.md"


def read_recipe(path: Path | str) -> Recipe:
    """The recipe that a file of YAML holds.

    Raises:
        RecipeError: it cannot be read, has more than 64 KiB or 1,000 rules, is no YAML, or no
            recipe. One message, of the first thing that is wrong.
    """
    path = Path(path)
    try:
        text = foreign_yaml.read_text(path, _REMEDY)
    except ForeignFileError as error:
        raise RecipeError(str(error)) from None
    try:
        return parse_recipe(text)
    except RecipeError as error:
        raise RecipeError(f"the recipe {path} cannot be used: {error}") from None


def parse_recipe(text: str) -> Recipe:
    """The recipe that a text of YAML holds.

    Raises:
        RecipeError: it holds none.
    """
    try:
        root = foreign_yaml.tree(text)
    except ValueError as error:
        raise RecipeError(f"{error}; {_REMEDY}") from None
    values = _mapping(root, "a recipe")
    unknown = next((key for key in values if key not in (*_TEXTS, _RULES)), None)
    if unknown is not None:
        hint = did_you_mean(unknown[:100], (*_TEXTS, _RULES))
        known = ", ".join((*_TEXTS, _RULES))
        raise RecipeError(f"unknown key {unknown!r:.100}: {hint}known are {known}")
    if _RULES not in values:
        raise RecipeError(f"it has no {_RULES!r}: a mapping of patterns to grids; {_REMEDY}")
    rules = _mapping(values.pop(_RULES), f"{_RULES!r}")
    if len(rules) > _MOST_RULES:
        raise RecipeError(f"it has {len(rules):,} rules, and {_MOST_RULES:,} are the most")
    grids = {
        pattern: _text(node, f"the grid of {pattern!r:.200}") for pattern, node in rules.items()
    }
    texts = {key: _text(node, repr(key)) for key, node in values.items()}
    return Recipe(tuple(Rule(pattern, grid) for pattern, grid in grids.items()), **texts)


def format_recipe(recipe: Recipe) -> str:
    """A recipe as YAML, which `parse_recipe` reads as the same."""
    texts = {key: getattr(recipe, key) for key in _TEXTS if getattr(recipe, key)}
    rules = {rule.pattern: rule.grid for rule in recipe.rules}
    document = {**texts, _RULES: rules}
    return _HEAD + foreign_yaml.written(document)


def write_recipe(recipe: Recipe, path: Path | str, *, overwrite: bool = False) -> None:
    """Write a recipe as YAML, whole or not at all.

    Raises:
        OutputError: the file exists and `overwrite` is false, or it cannot be written.
    """
    with replaced_file(Path(path), overwrite) as staged:
        staged.write_text(format_recipe(recipe), encoding="utf-8")


def _mapping(node: yaml.Node | None, what: str) -> dict[str, yaml.Node]:
    try:
        return foreign_yaml.mapping(node, what)
    except ValueError as error:
        raise RecipeError(f"{error}; {_REMEDY}") from None


def _text(node: yaml.Node, what: str) -> str:
    try:
        text = foreign_yaml.scalar(node, what)
    except ValueError as error:
        raise RecipeError(f"{error}; {_REMEDY}") from None
    if text is None:
        raise RecipeError(f"{what} is empty; to leave a weight unquantized write none")
    return text
