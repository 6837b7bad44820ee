"""Bytes that weights take in a GGUF file, and llama-quantize's recipe of about as many.

A tensor is its rows one after the other, each of whole blocks, padded to 32 bytes. Metadata and the
vocabulary come on top; they are the same whatever the types. Source: ggml/src/ggml.c
`ggml_row_size`, ggml/src/gguf.cpp.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lrqat.errors import RecipeError
from lrqat.grids.grid import GRIDS
from lrqat.recipes.llama_quantize import choose_types
from lrqat.recipes.mixtures import MIXTURES
from lrqat.recipes.model_shape import ModelShape
from lrqat.recipes.recipe import UNQUANTIZED

_ALIGNMENT = 32
_FLOATING = {"f32": 4, "f16": 2, "bf16": 2}
# Bytes of 256 weights in the types that no grid is named after. Source: ggml/src/ggml-common.h.
_BYTES_OF_256 = {
    "iq1_s": 50, "iq1_m": 56, "iq2_xxs": 66, "iq2_xs": 74, "iq2_s": 82, "iq3_xxs": 98,
    "iq3_s": 110,
}  # fmt: skip
_GATE_AND_UP = "experts.gate_up_proj"  # two tensors in the file


@dataclass(frozen=True)
class Nearest:
    """A recipe of llama-quantize, and the bytes of a model's weights in it.

    Attributes:
        name: such as "Q4_K_M".
        nbytes: as `data_bytes` counts them.
    """

    name: str
    nbytes: int


def tensor_bytes(shape: tuple[int, ...], kind: str) -> int:
    """Bytes of a tensor without what pads it.

    Args:
        shape: ..., out, in.
        kind: a type of ggml, in any case: "q4_k", "F16".

    Raises:
        RecipeError: the type is none of llama.cpp's, as the grids for ONNX are none; or rows are no
            whole blocks of it.
    """
    name, width = kind.lower(), shape[-1]
    weights = math.prod(shape)
    if name in _FLOATING:
        return weights * _FLOATING[name]
    grid = GRIDS.get(name)
    if grid is None and name in _BYTES_OF_256 and width % 256 == 0:
        return weights // 256 * _BYTES_OF_256[name]
    if grid is None or "-" in name or grid.refuses(width):
        raise RecipeError(
            f"rows of {width} weights have no size in {kind!r}: it is no type of llama.cpp, or "
            "they are not whole blocks of it; choose another grid"
        )
    bits = weights * grid.bits_per_weight(width)
    return int(bits) // 8


def data_bytes(
    kinds: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], unquantized: str = "f16"
) -> int:
    """Bytes of all tensors with their padding: a GGUF file without what comes before its tensors.

    Args:
        kinds: module or tensor name -> grid, type, or `none`.
        shapes: of at least the same names, ..., out, in.
        unquantized: the type of what is `none`.

    Raises:
        RecipeError: see `tensor_bytes`.
    """
    total = 0
    for name, kind in kinds.items():
        *stack, rows, width = (1, *shapes[name])
        count = 2 if name.endswith(_GATE_AND_UP) else 1
        own = unquantized if kind == UNQUANTIZED else kind
        nbytes = tensor_bytes((*stack, rows // count, width), own)
        total += count * (nbytes + -nbytes % _ALIGNMENT)
    return total


def nearest_recipe(nbytes: int, model: ModelShape, *, imatrix: bool = False) -> Nearest:
    """llama-quantize's recipe with which the weights of a model take about `nbytes`.

    Recipes of types that no grid is named after are among them.

    Args:
        nbytes: as `data_bytes` counts the weights of `model.shapes`.
        model: the weights.
        imatrix: whether llama-quantize is given an importance matrix.

    Raises:
        RecipeError: see `lrqat.recipes.llama_quantize.choose_types`.
    """
    sizes = [
        Nearest(name, data_bytes(choose_types(name, model, imatrix=imatrix), model.shapes))
        for name in MIXTURES
    ]
    return min(sizes, key=lambda each: abs(each.nbytes - nbytes))
