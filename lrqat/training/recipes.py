"""The recipe of a run: a file, or the types that llama-quantize gives the weights of the model."""

from pathlib import Path
from typing import Any

from lrqat.errors import UserError
from lrqat.models.surgery import SurgeryPlan, weight_shapes
from lrqat.models.tying import is_tied
from lrqat.recipes.compact import compact
from lrqat.recipes.llama_quantize import recipe_of
from lrqat.recipes.model_shape import ModelShape
from lrqat.recipes.recipe import UNQUANTIZED, Recipe
from lrqat.recipes.recipe_file import read_recipe

_SUFFIXES = (".yaml", ".yml")


def find_recipe(asked: str | None, model: Any, *, imatrix: bool = False) -> Recipe | None:
    """The recipe that `--recipe` names.

    Args:
        asked: a file of YAML, or a name of llama-quantize's such as "Q4_K_M"; None for none.
        model: the causal LM; names, shapes and configuration are read.
        imatrix: whether there is an importance matrix, on which some of its types depend.

    Raises:
        UserError: there is no such file, or no such name; the recipe cannot be used.
    """
    if asked is None:
        return None
    path = Path(asked)
    if path.suffix.lower() in _SUFFIXES or path.is_file():
        if not path.exists():
            raise UserError(f"--recipe {asked}: there is no such file; check the path")
        return read_recipe(path)
    return recipe_of(asked, model_shape(model), imatrix=imatrix)


def model_shape(model: Any) -> ModelShape:
    """What llama-quantize asks of `model`. Raises RecipeError for what it does not know."""
    return ModelShape.of(model.config.to_dict(), weight_shapes(model), is_tied(model))


def recipe_from(surgery: SurgeryPlan, name: str, description: str = "") -> Recipe:
    """The recipe that asks for the grids that a plan has. Raises RecipeError."""
    grids = {module: target.grid.name for module, target in surgery.quantized.items()}
    return compact(grids | dict.fromkeys(surgery.kept, UNQUANTIZED), name, description)
