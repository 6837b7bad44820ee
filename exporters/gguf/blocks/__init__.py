"""The ggml types that we write, one module each; a module dropped in here is registered.

An integer type is a module with

    NAME, TYPE, FILE_TYPE     its name, its ggml type, the number that `general.file_type` takes
    ACTIVATIONS               what llama.cpp rounds activations to when it multiplies with the type
    refuses(grid, in_features) -> str | None
    refuses_scales(scales, grid) -> str | None      where the grid alone does not tell
    tensor_scale(scales) -> float32                 where a tensor beside it has one for all weights
    encode(q, scales, grid)   -> Fields: the type's own numbers for those of a checkpoint
    pack(Fields)              -> bytes of rows
    unpack(bytes of rows)     -> Fields
    factors(Fields)           -> the integers and scales that multiply to the weights

and a floating type one with NAME, TYPE, FILE_TYPE, `exact(values)`, `pack(values)` and
`unpack(bytes of rows)`.
What types have in common is in `exporters.gguf.layout`: `exactness` (refusing) and `encoding`, one
function each for every form of weights, `fields` (the numbers and what they multiply to) and `rows`
(bits and bytes).
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from exporters.gguf.layout.fields import Factors, Fields
from exporters.gguf.layout.ggml_types import GgmlType
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.grids.grid import Grid

ScaleParts = Callable[[], Iterable[StoredScales]]  # the scales of a weight, some rows at a time


class Block(Protocol):
    """What every type has."""

    NAME: str
    TYPE: GgmlType
    FILE_TYPE: int


class IntegerBlock(Block, Protocol):
    """A type that stores integers and scales.

    ACTIVATIONS names the rounding as in `lrqat.activations.runtime_rounding`, or "q8_1", which is
    no grid that can be trained: it also rounds the sum of a block (ggml-cpu/ggml-cpu.c
    `type_traits_cpu`).
    """

    ACTIVATIONS: str

    def refuses(self, grid: Grid, in_features: int) -> str | None:
        """Why rows of `in_features` weights on `grid` are not exact in this type, or None."""

    def encode(self, q: NDArray[np.int8], scales: StoredScales, grid: Grid) -> Fields:
        """The type's numbers for q int8 (out, in). Raises ExportRefusedError if one is inexact."""

    def pack(self, fields: Fields) -> NDArray[np.uint8]:
        """Bytes (out, row bytes)."""

    def unpack(self, data: NDArray[np.uint8]) -> Fields:
        """The numbers of rows of bytes (out, row bytes)."""

    def factors(self, fields: Fields) -> Factors:
        """What multiplies to the weights, as llama.cpp computes them."""


class ValueBlock(Block, Protocol):
    """A type that floating-point numbers can be stored in."""

    def pack(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Bytes (rows, row bytes) of float32 (rows, columns), rounded to nearest even."""

    def unpack(self, data: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The float32 (rows, columns) that the bytes stand for, exactly."""


class FloatBlock(ValueBlock, Protocol):
    """A type that stores floating-point numbers one by one."""

    def exact(self, values: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which of finite float32 values the type holds exactly."""


@cache
def _modules() -> tuple[Any, ...]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(importlib.import_module(f"{__name__}.{name}") for name in names)


def integer_blocks() -> dict[str, IntegerBlock]:
    """Integer types by name, the smallest first."""
    found = [cast(IntegerBlock, m) for m in _modules() if hasattr(m, "refuses")]
    return {b.NAME: b for b in sorted(found, key=lambda b: (bits_per_weight(b), b.NAME))}


def float_blocks() -> dict[str, FloatBlock]:
    """Floating types by name."""
    return {m.NAME: cast(FloatBlock, m) for m in _modules() if not hasattr(m, "refuses")}


def refuses_scales(block: IntegerBlock, scales: ScaleParts, grid: Grid) -> str | None:
    """Why weights with these scales are not exact in a type that holds `grid`, or None.

    `scales` is called only if the type has something against scales.
    """
    asked: Callable[[StoredScales, Grid], str | None] | None
    asked = getattr(block, "refuses_scales", None)
    return next(filter(None, (asked(each, grid) for each in scales())), None) if asked else None


def find_tensor_scale(block: Block) -> Callable[[StoredScales], np.float32] | None:
    """The type's `tensor_scale`, or None: all is in the blocks."""
    found: Callable[[StoredScales], np.float32] | None = getattr(block, "tensor_scale", None)
    return found


def bits_per_weight(block: Block) -> float:
    """Bits per weight, scales included."""
    return 8 * block.TYPE.nbytes / block.TYPE.weights


def row_bytes(block: Block, in_features: int) -> int:
    """Bytes of a row. Raises ValueError if the row is not a whole number of blocks."""
    return block.TYPE.blocks(in_features) * block.TYPE.nbytes
