"""What is asked about: the types that a file, a checkpoint, or a run that is planned holds.

GGUF types are by name, those of ONNX and of compressed-tensors by bits and groups (`int4-g32`), or
by bits alone ("int4") where a file does not say more. Unquantized tensors run everywhere.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.description import Description
from exporters.format import CHECKPOINT, load_format, recognise
from exporters.inspection import inspect
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import RuntimeUnavailableError, UserError
from lrqat.grids.backends import FUSED, GGUF, ONNX
from lrqat.grids.grid import Grid, find_grid
from lrqat.grids.packing import bits_in_checkpoint, containers
from lrqat.recipes.recipe import UNQUANTIZED
from lrqat.recipes.recipe_file import read_recipe

if TYPE_CHECKING:
    from lrqat.models.surgery import SurgeryPlan

_FLOATS = ("f32", "f16", "bf16", "f64", "i32")
_WHOLE_BLOCKS = 256  # weights of a row that every type's blocks fit into


@dataclass
class Subject:
    """Types by the format that has them.

    Attributes:
        name: what it is called.
        types: format -> type -> weights of it; 1 for each where the model is not known.
        misfits: format -> why not all weights have a type in it.
        planned: whether there is no file yet, whose types depend on what it is exported for.
    """

    name: str
    types: dict[str, dict[str, int]] = field(default_factory=dict)
    misfits: dict[str, str] = field(default_factory=dict)
    planned: bool = False


def subject_of_path(path: str) -> Subject:
    """Of a GGUF file, an ONNX folder or a fused checkpoint.

    Raises:
        UserError: neither, or one that is damaged.
    """
    if recognise(path) == CHECKPOINT:
        checkpoint = Checkpoint.open(path, verify=False)
        shapes = {name: checkpoint.shape(name) for name in checkpoint.quantized_names}
        return _of_grids(path, ((checkpoint.grid(name), shape) for name, shape in shapes.items()))
    found = inspect(path)
    is_gguf = found.kind == GGUF
    return Subject(path, {GGUF: _gguf_types(found)} if is_gguf else {ONNX: _onnx_types(found)})


def subject_of_plan(name: str, surgery: "SurgeryPlan") -> Subject:
    """Of a run, by the grids that its weights will be on."""
    return _of_grids(name, ((t.grid, t.shape) for t in surgery.quantized.values()))


def subject_of_grids(name: str, grids: Iterable[str]) -> Subject:
    """Of grids alone, on rows that fit all blocks. Raises GridError for an unknown one."""
    rows = (1, _WHOLE_BLOCKS)
    return _of_grids(name, ((find_grid(each), rows) for each in grids if each != UNQUANTIZED))


def subject_of_recipe(path: str) -> Subject:
    """Of a recipe's file.

    Raises:
        RecipeError: it cannot be read; the names of llama-quantize's need a model.
    """
    if not Path(path).is_file():
        raise UserError(
            f"--recipe {path} is no file, and what a name of llama-quantize's means depends on the "
            f"model: lrqat train --recipe {path} --model MODEL ... --dry-run says where it runs"
        )
    recipe = read_recipe(path)
    return subject_of_grids(recipe.name or path, dict.fromkeys(r.grid for r in recipe.rules))


def _of_grids(name: str, weights: Iterable[tuple[Grid, tuple[int, ...]]]) -> Subject:
    made = Subject(name, planned=True)
    types: dict[str, dict[str, int]] = {f: defaultdict(int) for f in (GGUF, ONNX, FUSED)}
    try:
        load_format("gguf")
    except RuntimeUnavailableError as error:
        del types[GGUF]
        made.misfits[GGUF] = str(error)
    for grid, shape in weights:
        for form, held in types.items():
            found = _TYPE_OF[form](grid, shape[-1])
            if found is None:
                made.misfits[form] = f"no type of it holds {grid.name} exactly"
            else:
                held[found] += math.prod(shape)
    made.types = {form: dict(held) for form, held in types.items() if form not in made.misfits}
    return made


@cache
def _in_gguf(grid: Grid, columns: int) -> str | None:
    from exporters.gguf.tensors.selection import exact_types

    return next(iter(exact_types(grid, columns)), None)


def _in_onnx(grid: Grid, columns: int) -> str | None:
    return None if grid.minimum else f"int{containers(grid)[0]}-{_groups(grid)}"


def _packed(grid: Grid, columns: int) -> str | None:
    return f"int{bits_in_checkpoint(grid)}-{_groups(grid)}" if grid.symmetric else None


def _groups(grid: Grid) -> str:
    return "channel" if grid.group_size is None else f"g{grid.group_size}"


# (grid, inputs) -> the type of a weight in a format, or None where there is none.
_TYPE_OF: dict[str, Callable[[Grid, int], str | None]] = {
    GGUF: _in_gguf,
    ONNX: _in_onnx,
    FUSED: _packed,
}


def _gguf_types(found: Description) -> dict[str, int]:
    named = {kind.lower(): total.weights for kind, total in found.types.items()}
    return {kind: weights for kind, weights in named.items() if kind not in _FLOATS}


def _onnx_types(found: Description) -> dict[str, int]:
    """By bits, and by groups where the compact form has them in the type's name."""
    held: dict[str, int] = defaultdict(int)
    for kind, total in found.types.items():
        bits, _, blocks = kind.lower().removeprefix("u").partition(", blocks of ")
        if bits in ("int2", "int4", "int8"):
            held[f"{bits}-g{blocks}" if blocks else bits] += total.weights
    return dict(held)
