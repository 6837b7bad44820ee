"""Looking at a source: the grid of each matrix, held against the source, or why it has none.

A stack of experts is on one grid or on none: where its experts differ it stays unquantized.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lrqat.checkpoint.reader import QuantizedTensor
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.importing import search
from lrqat.importing.recovery import measured
from lrqat.importing.sources.source import Read, Source, expert_name
from lrqat.models.matrices import Matrix, find_matrices

Progress = Callable[[str], None]

_SEVERAL_GRIDS = "its experts lie on several grids"


@dataclass(frozen=True)
class TensorReport:
    """What became of a matrix.

    Attributes:
        name: of the module.
        stored: how the source stores it.
        weights: how many it has.
        grid: the grid that it was put on, or None.
        nearest: the grid that came nearest, where it is not exact.
        share: of the weights that are exact on either.
        difference: the largest difference from a weight of the source.
        note: what was converted, or why no grid holds it.
    """

    name: str
    stored: str
    weights: int
    grid: str | None
    nearest: str | None
    share: float
    difference: float
    note: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether all of it is on a grid, bit for bit."""
        return self.grid is not None and self.share == 1


@dataclass(frozen=True)
class Examined:
    """A matrix of the model, or a stack of experts, and what becomes of it.

    Attributes:
        name: of the module; of a stack, of its parameter.
        matrix: its place in the model.
        parameters: of the source, that it is stored in: one, or one for each expert.
        tensors: integers and scales, one for each of `parameters`; empty: it stays unquantized.
        report: for people.
        values: what it means, in the source's type and the model's shape.
    """

    name: str
    matrix: Matrix
    parameters: tuple[str, ...]
    tensors: tuple[QuantizedTensor, ...]
    report: TensorReport
    values: Callable[[], Tensor]


def examine_all(source: Source, *, allow_inexact: bool, progress: Progress) -> Iterator[Examined]:
    """Every matrix that can be on a grid, in the order of the files.

    Args:
        source: opened.
        allow_inexact: put on the nearest grid what lies on none.
        progress: called with the name of every parameter once it has been looked at.

    Raises:
        ModelError: the source is damaged.
    """
    by_parameter = {}
    for name, matrix in find_matrices(source.skeleton):
        if matrix.kind == WeightKind.EXPERTS:
            by_parameter[expert_name(name, 0)] = name, matrix
        elif matrix.kind in (WeightKind.LINEAR, WeightKind.EMBEDDING):
            by_parameter[f"{name}.weight"] = name, matrix
    for parameter in source.shapes:
        if parameter not in by_parameter:
            continue
        name, matrix = by_parameter[parameter]
        if matrix.kind == WeightKind.EXPERTS:
            yield _stack(source, name, matrix, allow_inexact, progress)
            continue
        read = source.read(parameter)
        tensor, report = _examine(name, matrix, read, allow_inexact)
        found = () if tensor is None else (tensor,)
        yield Examined(name, matrix, (parameter,), found, report, _given(read.values))
        progress(parameter)


def _stack(
    source: Source, name: str, matrix: Matrix, allow_inexact: bool, progress: Progress
) -> Examined:
    """A stack of experts, of which one is in memory at a time as floating-point numbers."""
    parameters = tuple(expert_name(name, i) for i in range(matrix.count))
    tensors, reports = [], []
    for parameter in parameters:
        tensor, report = _examine(parameter, matrix, source.read(parameter), allow_inexact)
        tensors.append(tensor)
        reports.append(report)
        progress(parameter)
    found = tuple(tensor for tensor in tensors if tensor is not None)
    joined = _joined(name, reports)
    if len(found) < len(tensors):
        found = ()
    elif len({tensor.grid for tensor in found}) > 1:
        found, joined = (), replace(joined, note=_SEVERAL_GRIDS)
    if not found:
        joined = replace(joined, grid=None, nearest=joined.nearest or reports[0].grid)

    def values() -> Tensor:
        return torch.stack([source.read(parameter).values for parameter in parameters])

    return Examined(name, matrix, parameters, found, joined, values)


def _joined(name: str, reports: list[TensorReport]) -> TensorReport:
    """What is said of a stack: the worst of what is said of its experts."""
    worst = min(reports, key=lambda each: (each.is_exact, each.share))
    weights = sum(each.weights for each in reports)
    return replace(
        worst,
        name=name,
        weights=weights,
        share=sum(each.share * each.weights for each in reports) / weights,
        difference=max(each.difference for each in reports),
        note=next((each.note for each in reports if each.note), ""),
    )


def _given(values: Tensor) -> Callable[[], Tensor]:
    return lambda: values


def _examine(
    name: str, matrix: Matrix, read: Read, allow_inexact: bool
) -> tuple[QuantizedTensor | None, TensorReport]:
    """Hold what a source says against its own weights, or find integers and scales for these."""
    found = None if read.tensor is None else search.Finding.of(measured(read.tensor, read.values))
    if found is None or not found.is_exact:
        found = search.find(name, read.values)
    recovered, grid, note = found.recovered, found.grid, read.note
    if found.is_exact and matrix.never:
        recovered, note = None, matrix.never
    elif not found.is_exact:
        if allow_inexact and not matrix.never and grid is not None and recovered is None:
            found = search.on(name, read.values, grid)
            recovered = found.recovered
        recovered = recovered if allow_inexact and not matrix.never else None
    report = TensorReport(
        name,
        read.said,
        read.values.numel(),
        recovered.tensor.grid.name if recovered else None,
        grid.name if grid is not None and not (recovered and found.is_exact) else None,
        found.share,
        found.difference,
        note,
    )
    return recovered.tensor if recovered else None, report
