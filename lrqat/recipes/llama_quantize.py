"""The types that llama-quantize gives the weights of a model, and the recipe that asks for them.

The rules are in `lrqat.recipes.mixtures`; here they are carried out, in the order of llama.cpp's
src/llama-quant.cpp `llama_tensor_get_type`.
"""

from collections import Counter
from collections.abc import Iterator

from lrqat.architectures import Role, role_of
from lrqat.errors import RecipeError, did_you_mean
from lrqat.grids.grid import GRIDS
from lrqat.recipes.compact import compact
from lrqat.recipes.mixtures import ALIASES, F16, FALLBACKS, MIXTURES, Mixture, Place, eight
from lrqat.recipes.model_shape import ModelShape, layer_of
from lrqat.recipes.recipe import UNQUANTIZED, Recipe

_VALUE_LIKE = (Role.VALUE, Role.FUSED_ATTENTION)
_COUNTED_AS = {Role.FUSED_ATTENTION: Role.VALUE}
_EXPERTS = "experts"
_SUPER_BLOCK = 256  # of the types that no grid of ours is named after
# model_type -> layers of the model in which eight heads share each value projection, which
# llama-quantize then gives more bits (LLM_TYPE_70B of src/models).
_SEVENTY_BILLION = {
    "llama": 80, "mistral": 80, "mixtral": 80, "qwen2": 80, "olmo": 80, "jais2": 68,
}  # fmt: skip
_UNLESS_EVERY_HEAD_HAS_ITS_OWN = ("llama", "mistral", "mixtral")
_EXCEPTIONS_OF_THEIR_OWN = ("falcon", "glm5_next")


def find_mixture(name: str) -> tuple[str, Mixture]:
    """The name as llama-quantize writes it, and its mixture.

    Raises:
        RecipeError: llama-quantize has none of that name, in any case.
    """
    own = name.upper()
    own = ALIASES.get(own, own)
    if own not in MIXTURES:
        hint = did_you_mean(name.lower(), [known.lower() for known in MIXTURES]).upper()
        hint = hint.replace("DID YOU MEAN", "did you mean").replace(" OR ", " or ")
        known = ", ".join(MIXTURES)
        raise RecipeError(f"unknown recipe {name!r:.100}: {hint}llama-quantize's are {known}")
    return own, MIXTURES[own]


def choose_types(name: str, model: ModelShape, *, imatrix: bool = False) -> dict[str, str]:
    """The type that llama-quantize gives each weight.

    Args:
        name: of the mixture, such as "Q4_K_M".
        model: the weights.
        imatrix: whether llama-quantize is given an importance matrix.

    Returns:
        The names of `model.shapes` -> ggml's name of a type, such as "Q6_K", or "F16" where rows
        are no whole blocks of 32.

    Raises:
        RecipeError: there is no such mixture; llama-quantize has exceptions for the model that are
            not known here; or what a weight is to the model is not known.
    """
    _, mixture = find_mixture(name)
    if model.model_type in _EXCEPTIONS_OF_THEIR_OWN:
        raise RecipeError(
            f"llama-quantize makes exceptions for {model.model_type} that are not known here; "
            "write the recipe yourself (docs/recipes.md)"
        )
    types = {}
    for module, role, place in _places(model, mixture, imatrix):
        width = model.shapes[module][-1]
        wanted = _wanted(mixture, module, role, place, model)
        types[module] = _fitting(wanted, width)
    return {module: types[module] for module in model.shapes}


def recipe_of(name: str, model: ModelShape, *, imatrix: bool = False) -> Recipe:
    """The recipe that puts every weight on the grid of the type that llama-quantize gives it.

    Args and errors are those of `choose_types`.

    Raises:
        RecipeError: a weight gets a type that no grid is named after.
    """
    own, _ = find_mixture(name)
    types = choose_types(own, model, imatrix=imatrix)
    grids = {module: UNQUANTIZED if t == F16 else t.lower() for module, t in types.items()}
    missing = Counter(
        types[module] for module, g in grids.items() if g != UNQUANTIZED and g not in GRIDS
    )
    if missing:
        listed = ", ".join(f"{kind} to {count} weights" for kind, count in missing.items())
        raise RecipeError(
            f"llama-quantize's {own} gives {listed} of this model, for which there is no such "
            "grid; take a recipe of types that there are, such as Q3_K_M or Q2_K, or write one"
        )
    with_imatrix = " with an importance matrix" if imatrix else ""
    about = f"the types that llama-quantize's {own} gives a {model.model_type} of {model.layers} "
    return compact(grids, own, f"{about}layers{with_imatrix}")


def _places(
    model: ModelShape, mixture: Mixture, imatrix: bool
) -> Iterator[tuple[str, Role, Place]]:
    """Every weight with its role and place, layer by layer."""
    roles = {module: _role(module) for module in model.shapes}
    counted = Counter(_COUNTED_AS.get(role, role) for role in roles.values())
    seen: Counter[Role] = Counter()
    for module in sorted(roles, key=layer_of):
        role = roles[module]
        kind = _COUNTED_AS.get(role, role)
        by_layer = model.experts > 1 and kind != Role.VALUE and not mixture.smallest
        index = layer_of(module) if by_layer else seen[kind]
        count = counted[kind] if kind == Role.VALUE else model.layers
        seen[kind] += 1
        yield module, role, Place(index, count, model.sharing, model.experts, imatrix)


def _role(module: str) -> Role:
    role = role_of(module)
    if role is None:
        raise RecipeError(
            f"what {module} is to its model is not known, and so what llama-quantize gives it; "
            "write the recipe yourself (docs/recipes.md)"
        )
    return role


def _wanted(mixture: Mixture, module: str, role: Role, place: Place, model: ModelShape) -> str:
    """The type that a weight gets if its rows fit."""
    if role == Role.HEAD or (role == Role.EMBEDDING and model.tied):
        fits = model.shapes[module][-1] % _block(mixture.usual) == 0
        return mixture.head if fits else "Q8_0"
    if mixture.stacks and _EXPERTS in module.split("."):
        return mixture.stacks
    if mixture.stacks:
        return mixture.usual
    choices = mixture.choices.get(_COUNTED_AS.get(role, role), ())
    chosen = next((kind for holds, kind in choices if holds(place)), mixture.usual)
    if mixture.smallest or role not in (*_VALUE_LIKE, Role.KEY):
        return chosen
    if eight(place):
        return "Q8_0"
    if role in _VALUE_LIKE and chosen in ("Q3_K", "Q4_K") and _is_seventy_billion(model):
        return "Q5_K"
    return chosen


def _is_seventy_billion(model: ModelShape) -> bool:
    if model.layers != _SEVENTY_BILLION.get(model.model_type):
        return False
    return model.model_type not in _UNLESS_EVERY_HEAD_HAS_ITS_OWN or model.sharing > 1


def _fitting(kind: str, width: int) -> str:
    """The type, or what takes its place if rows of `width` weights are no whole blocks of it."""
    if width % _block(kind) == 0:
        return kind
    other = FALLBACKS.get(kind, F16)
    return other if other == F16 or width % _block(other) == 0 else F16


def _block(kind: str) -> int:
    """Weights that a row of a type must be a multiple of."""
    grid = GRIDS.get(kind.lower())
    return grid.block or 1 if grid else _SUPER_BLOCK
