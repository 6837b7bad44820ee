"""The ggml types that we write, one module each; a module dropped in here is registered.

An integer type is a module with

    NAME, TYPE, FILE_TYPE     its name, ggml number, and the number `general.file_type` takes
    refuses(grid, in_features) -> str | None
    pack(q, scale) -> bytes of rows
    unpack(bytes of rows) -> q, scale of every block

and a floating type one with NAME, TYPE, FILE_TYPE, `pack(values)` and `unpack(bytes of rows)`.
Block and byte sizes come from `gguf.GGML_QUANT_SIZES`.
"""

import importlib
import pkgutil
from functools import cache
from typing import Any, Protocol, cast

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from numpy.typing import NDArray

from lrqat.grid import Grid


class Block(Protocol):
    """What every type has."""

    NAME: str
    TYPE: GGMLQuantizationType
    FILE_TYPE: LlamaFileType


class IntegerBlock(Block, Protocol):
    """A type that stores integers and scales."""

    def refuses(self, grid: Grid, in_features: int) -> str | None:
        """Why rows of `in_features` weights on `grid` are not exact in this type, or None."""

    def pack(self, q: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Bytes (out, row bytes) of q int8 (out, in) and scale float32 (out, groups)."""

    def unpack(self, data: NDArray[np.uint8]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Integers int8 (out, in) and the scale of every block, float32 (out, blocks)."""


class FloatBlock(Block, Protocol):
    """A type that stores floating-point numbers one by one."""

    def pack(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Bytes (rows, row bytes) of float32 (rows, columns), rounded to nearest even."""

    def unpack(self, data: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The float32 (rows, columns) that the bytes stand for, exactly."""


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


def bits_per_weight(block: Block) -> float:
    """Bits per weight, scales included."""
    weights, size = GGML_QUANT_SIZES[block.TYPE]
    return 8 * size / weights


def row_bytes(block: Block, in_features: int) -> int:
    """Bytes of a row. Raises ValueError if the row is not a whole number of blocks."""
    weights, size = GGML_QUANT_SIZES[block.TYPE]
    if in_features % weights:
        raise ValueError(f"{in_features} weights are not whole blocks of {weights}")
    return in_features // weights * size
