r"""A few readable rules that give every module its grid: what is written of a whole model.

Modules that differ in nothing but their layer's number are of one kind. A kind has a rule for the
grid that most of its layers have, and each other grid one more, which lists the layers:

    mlp\.down_proj$: q4_k
    layers\.(0|1|2|27)\.mlp\.down_proj$: q6_k
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from lrqat.recipes.recipe import Recipe, Rule

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
# Layers of one pattern; more go to another rule, since YAML breaks keys of over 128 characters.
_MOST_LISTED = 24
_Kind = tuple[str, str] | tuple[str]  # what is before and after the number, or the whole name


def compact(grids: Mapping[str, str], name: str = "", description: str = "") -> Recipe:
    """The recipe that gives each module its grid.

    Args:
        grids: module name -> grid or `none`, in the order of the model; at least one.
        name: of the recipe.
        description: of the recipe.

    Returns:
        One whose `grids_of(grids)` are `grids`. Its patterns are as short as that allows.

    Raises:
        RecipeError: an unknown grid, or no module.
    """
    rules = tuple(_rules(grids, whole=False))
    if len({rule.pattern for rule in rules}) == len(rules):
        recipe = Recipe(rules, name, description)
        if recipe.grids_of(grids) == dict(grids):
            return recipe
    # A short pattern is found in names that it does not mean.
    return Recipe(tuple(_rules(grids, whole=True)), name, description)


def _rules(grids: Mapping[str, str], *, whole: bool) -> Iterator[Rule]:
    """Rules with patterns of the whole name, or of its end."""
    kinds: dict[_Kind, dict[str, str]] = {}
    for module, grid in grids.items():
        kind, number = _split(module)
        kinds.setdefault(kind, {})[number] = grid
    for kind, by_layer in kinds.items():
        usual = Counter(by_layer.values()).most_common(1)[0][0]
        yield Rule(_pattern(kind, (), whole), usual)
        for grid in dict.fromkeys(by_layer.values()):
            layers = [number for number, own in by_layer.items() if own == grid != usual]
            for start in range(0, len(layers), _MOST_LISTED):
                yield Rule(_pattern(kind, layers[start : start + _MOST_LISTED], whole), grid)


def _split(module: str) -> tuple[_Kind, str]:
    """The kind of a module and the number of its layer, or the whole name and no number."""
    number = _NUMBER.search(module)
    if not number:
        return (module,), ""
    return (module[: number.start()], module[number.end() :]), number.group()


def _pattern(kind: _Kind, layers: Sequence[str], whole: bool) -> str:
    """Of modules of a kind; of some layers, or of all."""
    if len(kind) == 1:
        return f"^{re.escape(kind[0])}$"
    before, after = kind
    if layers or whole:
        listed = f"({'|'.join(layers)})" if len(layers) > 1 else "".join(layers) or r"\d+"
        begin = f"^{re.escape(before)}" if whole else re.escape(_last_part(before))
        return f"{begin}{listed}{re.escape(after)}$"
    return f"{re.escape(after.removeprefix('.'))}$"


def _last_part(before: str) -> str:
    """`layers.` of `model.layers.`."""
    return before[before.rfind(".", 0, -1) + 1 :]
