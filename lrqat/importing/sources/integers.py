"""Integers and scales that a source has, on a grid of ours; exactly, or not at all.

    weight = scale * (q - zero_point), rounded to the type of the scale

A source may share a scale among more weights than any grid: it is repeated. Its scales may be
bfloat16 or float32, and a grid's are float16. Most bfloat16 scales are float16 numbers too; for
another one, a float16 number is taken that gives the same weights, every one of them, if there is
one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrqat.checkpoint.reader import QuantizedTensor
from lrqat.checkpoint.stored_scales import StoredScales
from lrqat.grids.grid import (
    GRIDS,
    Float8Scale,
    FloatScale,
    Grid,
    PowerOfTwoScale,
    ScaleCodec,
)
from lrqat.importing.recovery import row_spans
from lrqat.importing.rounded import Rounded
from lrqat.importing.scaled import nearest_stored
from lrqat.importing.sources.source import Read


@dataclass(frozen=True)
class Integers:
    """A matrix as a source has it.

    Attributes:
        q: int16 (out, in): the integers less their zero-points; of a codebook, its levels.
        scale: (out, groups), bfloat16, float16 or float32.
        bits: of an integer.
        symmetric: whether the source has no zero-points.
        levels: whether the integers are those of 4-bit floats (E2M1 times two).
        tensor_scale: the power of two in the scales that all of them share, where there is one.
        dtype: the type that the source multiplies out to; None: that of the scale.
    """

    q: Tensor
    scale: Tensor
    bits: int
    symmetric: bool = True
    levels: bool = False
    tensor_scale: float | None = None
    dtype: torch.dtype | None = None

    def values(self) -> Tensor:
        """The weights, as the source's own library multiplies them out: (out, in)."""
        dtype = self.dtype or self.scale.dtype
        made = torch.empty(self.q.shape, dtype=dtype)
        for rows in row_spans(*self.q.shape):
            q, scale = self.q[rows].float(), self.scale[rows].float()
            made[rows] = (q.view(*scale.shape, -1) * scale[..., None]).view(q.shape).to(dtype)
        return made


def one_below_the_other(parts: Sequence[Integers]) -> Integers | None:
    """Matrices of one form as one matrix; None where there are none, or of several forms."""
    forms = {
        (p.q.shape[1], p.scale.shape[1], p.scale.dtype, p.bits, p.levels, p.tensor_scale, p.dtype)
        for p in parts
    }
    if len(forms) != 1:
        return None
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        q=torch.cat([p.q for p in parts]),
        scale=torch.cat([p.scale for p in parts]),
        symmetric=all(p.symmetric for p in parts),
    )


def on_grid(name: str, integers: Integers, said: str) -> Read:
    """A matrix on the smallest grid that holds its form, or the reason why there is none."""
    values = integers.values()
    candidates = [grid for grid in _of_its_form(integers) if grid.refuses(values.shape[1]) is None]
    if not candidates:
        groups = values.shape[1] // integers.scale.shape[1]
        return Read(said, values, note=f"no grid has {integers.bits} bits and groups of {groups}")
    columns, whole_rows = values.shape[1], integers.scale.shape[1] == 1
    fewest = lambda g: (g.bits_per_weight(columns), whole_rows and g.group_size is not None)  # noqa: E731
    grid = min(candidates, key=fewest)
    scale, note = _scales(integers, values, grid)
    if scale is None:
        return Read(said, values, note=note)
    shifted, zero_point = _zero_points(integers.q, grid)
    if shifted is None:
        return Read(said, values, note=f"{grid.name} has no zero-points for some of its groups")
    scales = StoredScales(scale, zero_point, tensor_scale=_tensor_scale(integers, len(scale)))
    return Read(said, values, QuantizedTensor(name, shifted, scales, grid), note)


def _of_its_form(integers: Integers) -> list[Grid]:
    """Grids with its integers, whose groups divide its own; in the order of the table."""
    columns, groups = integers.q.shape[1], integers.scale.shape[1]
    size = columns // groups
    low, high = -(1 << integers.bits - 1), (1 << integers.bits - 1) - 1
    found = []
    for grid in GRIDS.values():
        if grid.group_size is None and groups > 1:
            continue
        if grid.group_size is not None and size % grid.group_size:
            continue
        if integers.levels:
            shared = Float8Scale if integers.tensor_scale is not None else PowerOfTwoScale
            fits = isinstance(grid.scale, shared)
        else:
            plain = (
                grid.levels is None and grid.minimum is None and isinstance(grid.scale, FloatScale)
            )
            plain = plain and grid.zero_point is not integers.symmetric
            fits = plain and grid.q_min <= low and grid.q_max >= high
        if fits:
            found.append(grid)
    return found


def _scales(integers: Integers, values: Tensor, grid: Grid) -> tuple[NDArray[Any] | None, str]:
    """The scales as the grid stores them, and a note; None: they are not, and the note says why."""
    given = integers.scale.float()
    kind = str(integers.scale.dtype).removeprefix("torch.")
    if not bool(given.isfinite().all()):
        return None, "it has scales that are NaN or infinite"
    groups = grid.groups(values.shape[1])
    zero = given == 0
    if bool((zero & (integers.q.view(*given.shape, -1) != 0).any(2)).any()):
        return None, "it has scales of zero"
    given = torch.where(zero, 1.0, given)
    if not grid.signed_scale and bool((given < 0).any()):
        return None, f"it has negative scales, and {grid.name} has none"
    stored = nearest_stored(given, grid.scale)
    note, other = "", stored != given
    if bool(other.any()):
        stored, failing = _converted(integers, values, grid.scale, given)
        count = int(other.sum())
        what = f"{count:,} of {given.numel():,} {kind} scales are not float16 numbers"
        if failing:
            return None, f"{what}, and for {failing:,} no float16 number gives the same weights"
        note = f"{what}; converted to ones that give the same weights"
    return stored.repeat_interleave(groups // given.shape[1], 1).numpy(), note


def _converted(
    integers: Integers, values: Tensor, codec: ScaleCodec, given: Tensor
) -> tuple[Tensor, int]:
    """Scales of the codec with the same products after rounding, and how many have none."""
    made, failing = torch.empty_like(given), 0
    for rows in row_spans(*values.shape):
        scale = given[rows]
        q = integers.q[rows].float().view(scale.numel(), -1)
        weights = Rounded(values[rows].float().view(scale.numel(), -1), values.dtype)
        least, most = weights.ends()
        ends = least / q, most / q
        low = torch.where(q != 0, torch.minimum(*ends), -torch.inf).amax(1)
        high = torch.where(q != 0, torch.maximum(*ends), torch.inf).amin(1)
        near, middle = nearest_stored(scale.flatten(), codec), (low + high) / 2
        further = nearest_stored(torch.where(middle.isfinite(), middle, scale.flatten()), codec)
        fits = weights.equal(q * near[:, None]).all(1)
        chosen = torch.where(fits, near, further)
        failing += int((~weights.equal(q * chosen[:, None]).all(1)).sum())
        made[rows] = chosen.view(scale.shape)
    return made, failing


def _zero_points(q: Tensor, grid: Grid) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """Integers of the grid, and its zero-points; None if the range does not reach."""
    if not grid.zero_point:
        inside = grid.q_min <= int(q.min()) and int(q.max()) <= grid.q_max
        return (q.to(torch.int8).numpy() if inside else None), None
    grouped = q.view(len(q), grid.groups(q.shape[1]), -1)
    least, most = grid.q_min - grouped.amin(2), grid.q_max - grouped.amax(2)
    least, most = least.clamp(min=grid.q_min), most.clamp(max=grid.q_max)
    if bool((least > most).any()):
        return None, None
    zero = torch.zeros_like(least).maximum(least).minimum(most)
    shifted = (grouped + zero[..., None]).view(q.shape).to(torch.int8).numpy()
    return shifted, zero.to(torch.int8).numpy()


def _tensor_scale(integers: Integers, rows: int) -> NDArray[Any] | None:
    if integers.tensor_scale is None:
        return None
    return np.full((rows, 1), integers.tensor_scale, np.float32)
