"""The scales, minima and zero-points of a fused checkpoint: reading and checking them in numpy.

Names of the tensors beside X.weight_packed, each only where the grid has it:

    X.weight_scale          float32 (out, groups)    the scale of every group, exact
    X.weight_zero_point     int8 (out, groups)       weight = scale * (q - zero_point)
    X.weight_minimum        float32 (out, groups)    weight = scale * q - minimum
    X.weight_super_scale    float32 (out, supers)    exact in float16
    X.weight_sub_scale      int8 (out, groups)       scale = super * sub
    X.weight_tensor_scale   float32 (out, 1)         the power of two that all scales of X share
    X.weight_super_minimum, X.weight_sub_minimum     the same for the minimum
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lrqat.errors import CheckpointError
from lrqat.grids.grid import (
    Float8Scale,
    FloatScale,
    Grid,
    PowerOfTwoScale,
    ScaleCodec,
    TwoLevelScale,
)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class StoredScales:
    """Scales and what goes with them; None where the grid has no such part.

    Attributes:
        scale: float32 (out, groups).
        zero_point: int8 (out, groups).
        minimum: float32 (out, groups).
        super_scale: float32 (out, supers), exact in float16.
        sub_scale: int8 (out, groups).
        super_minimum: float32 (out, supers), exact in float16.
        sub_minimum: int8 (out, groups).
        tensor_scale: float32 (out, 1), a power of two, the same in every row.
    """

    scale: Floats
    zero_point: NDArray[np.int8] | None = None
    minimum: Floats | None = None
    super_scale: Floats | None = None
    sub_scale: NDArray[np.int8] | None = None
    super_minimum: Floats | None = None
    sub_minimum: NDArray[np.int8] | None = None
    tensor_scale: Floats | None = None

    @property
    def offset(self) -> Floats | None:
        """What is subtracted from scale * q: float32 (out, groups), or None."""
        return self.minimum if self.zero_point is None else self.scale * self.zero_point

    def take(self, rows: NDArray[np.intp] | slice) -> "StoredScales":
        """Those of some rows."""
        parts: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        parts |= {name: part[rows] for name, part in parts.items() if part is not None}
        return StoredScales(**parts)

    @classmethod
    def join(cls, several: Sequence["StoredScales"]) -> "StoredScales":
        """The rows of several, one after another; all have the same parts."""
        parts: dict[str, Any] = {f.name: [getattr(r, f.name) for r in several] for f in fields(cls)}
        return cls(**{n: np.concatenate(p) for n, p in parts.items() if p[0] is not None})


PARTS: dict[str, str] = {field.name: f".weight_{field.name}" for field in fields(StoredScales)}


def read_scales(
    read: Callable[[str], NDArray[Any]], name: str, grid: Grid, rows: int, columns: int
) -> StoredScales:
    """Read and check the scales of one weight.

    Args:
        read: tensor name -> its values.
        name: module name.
        grid: its grid.
        rows: out.
        columns: in.

    Raises:
        CheckpointError: a part that is missing, has another shape, or holds values that the grid
            does not store.
    """
    reader = _Reader(read, name, grid, rows, columns)
    scale, super_scale, sub_scale = reader.codec("scale", grid.scale)
    _refuse(name, "scales", scale, {"zero": scale == 0}, grid)
    if not grid.signed_scale:
        problem = f"negative, which {grid.name} does not allow"
        _refuse(name, "scales", scale, {problem: scale < 0}, grid)
    minimum = super_minimum = sub_minimum = None
    if grid.minimum is not None:
        minimum, super_minimum, sub_minimum = reader.codec("minimum", grid.minimum)
    zero_point = reader.zero_point() if grid.zero_point else None
    tensor_scale = reader.tensor_scale(scale) if isinstance(grid.scale, Float8Scale) else None
    return StoredScales(
        scale, zero_point, minimum, super_scale, sub_scale, super_minimum, sub_minimum,
        tensor_scale,
    )  # fmt: skip


class _Reader:
    """Reads the parts of one weight."""

    def __init__(
        self, read: Callable[[str], NDArray[Any]], name: str, grid: Grid, rows: int, columns: int
    ) -> None:
        self._read, self._name, self._grid = read, name, grid
        self._rows, self._columns = rows, columns
        self._groups = grid.groups(columns)

    def _part(self, part: str, columns: int) -> NDArray[Any]:
        values = self._read(self._name + PARTS[part])
        if values.shape != (self._rows, columns):
            raise CheckpointError(
                f"{self._name}: {part.replace('_', ' ')}s have shape {values.shape}, "
                f"{self._grid.name} needs {(self._rows, columns)}"
            )
        return values

    def codec(self, part: str, codec: ScaleCodec) -> tuple[Floats, Any, Any]:
        """Values (out, groups) and, of two levels, both (else None, None)."""
        values = self._part(part, self._groups).astype(np.float32)
        _refuse(self._name, f"{part}s", values, {"not finite": ~np.isfinite(values)}, self._grid)
        if isinstance(codec, TwoLevelScale):
            return values, *self._levels(part, codec, values)
        _refuse(self._name, f"{part}s", values, _inexact(values, codec), self._grid)
        return values, None, None

    def _levels(
        self, part: str, codec: TwoLevelScale, values: Floats
    ) -> tuple[Floats, NDArray[np.int8]]:
        top = self._part(f"super_{part}", self._columns // codec.super_block).astype(np.float32)
        sub = self._part(f"sub_{part}", self._groups)
        for times in {1, codec.times}:
            inexact = _inexact(times * top, FloatScale())
            _refuse(self._name, f"super {part}s", top, inexact, self._grid)
        foreign = sub.dtype != np.int8 or sub.min() < codec.least or sub.max() > codec.most
        products = top.repeat(self._groups // top.shape[1], axis=1) * sub
        if foreign or not np.array_equal(products, values):
            raise CheckpointError(
                f"{self._name}: the two levels of its {part}s do not give its {part}s; train again"
            )
        return top, sub

    def tensor_scale(self, values: Floats) -> Floats:
        """float32 (out, 1), of which every value is a multiple by an UE4M3 number."""
        found = self._part("tensor_scale", 1).astype(np.float32)
        _refuse(self._name, "tensor scales", found, _inexact(found, PowerOfTwoScale()), self._grid)
        with np.errstate(over="ignore"):
            of_groups = values / found
        foreign = of_groups.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) != of_groups
        if foreign.any() or (found != found[0]).any():
            raise CheckpointError(
                f"{self._name}: its scales are no 8-bit floats times one tensor scale; train again"
            )
        return found

    def zero_point(self) -> NDArray[np.int8]:
        """int8 (out, groups)."""
        zero = self._part("zero_point", self._groups)
        low, high = self._grid.q_min, self._grid.q_max
        if zero.dtype != np.int8 or zero.min() < low or zero.max() > high:
            raise CheckpointError(f"{self._name}: zero-points that {self._grid.name} does not have")
        return zero


def _inexact(values: Floats, codec: ScaleCodec) -> dict[str, NDArray[np.bool_]]:
    """What `codec` cannot store, by the name of the problem."""
    if isinstance(codec, Float8Scale):  # `_Reader.tensor_scale` looks at them
        return {}
    if isinstance(codec, PowerOfTwoScale):
        return {"no powers of two": np.frexp(values)[0] != 0.5}
    assert isinstance(codec, FloatScale)
    with np.errstate(over="ignore"):
        return {f"not exact in {codec.dtype}": values != values.astype(codec.dtype)}


def _refuse(
    name: str, what: str, values: Floats, problems: dict[str, NDArray[np.bool_]], grid: Grid
) -> None:
    for problem, where in problems.items():
        if where.any():
            row, group = np.argwhere(where)[0]
            raise CheckpointError(
                f"{name}: {int(where.sum())} {what} are {problem}, the first "
                f"({values[row, group]}) at row {row}, group {group}; train again"
            )
