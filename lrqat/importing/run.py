"""Importing from end to end: read each tensor, find its grid, hold it against the source, write it.

    report = import_model("model.gguf", "imported")

A weight is put on a grid only if its integers and scales give back every value that the source's
own dequantisation gives, in its type. What does not fit stays unquantized and is named with the
grid that comes nearest.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lrqat.architectures import BESIDE_TEXT
from lrqat.atomic_files import explain_os_errors, refuse_existing, refuse_overlap, refuse_unwritable
from lrqat.checkpoint.publishing import held, published
from lrqat.checkpoint.reader import QuantizedTensor
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.errors import UserError
from lrqat.grids.grid import GRIDS
from lrqat.importing import search
from lrqat.importing.recovery import measured
from lrqat.importing.sources import open_source
from lrqat.importing.sources.source import Read, Source
from lrqat.importing.writing import CheckpointWriter
from lrqat.models import hub
from lrqat.models.license_files import license_files
from lrqat.models.matrices import Matrix, find_matrices
from lrqat.models.source_facts import source_facts
from lrqat.models.surgery import SurgeryPlan, Target
from lrqat.models.text_part import TextPart

Progress = Callable[[str], None]

_NOT_ON_A_GRID = "its weights lie on no grid"


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
class ImportReport:
    """What was found, and written where.

    Attributes:
        source: what was read.
        kind: what it is.
        tensors: every matrix of the model that can be on a grid.
        notes: what a user should know.
        path: the checkpoint's folder; "" if nothing was written.
    """

    source: str
    kind: str
    tensors: list[TensorReport]
    notes: list[str] = field(default_factory=list)
    path: str = ""

    @property
    def inexact(self) -> list[TensorReport]:
        """What was put on a grid that does not give all of it back, because it was asked for."""
        return [each for each in self.tensors if each.grid is not None and each.share < 1]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`; a difference from infinity or NaN is None."""
        return asdict(self) | {"tensors": [_finite(asdict(each)) for each in self.tensors]}


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


@dataclass(frozen=True)
class _Examined:
    """A matrix, and what becomes of it."""

    read: Read
    tensor: QuantizedTensor | None
    report: TensorReport


def examine(source: str, *, progress: Progress = lambda name: None) -> ImportReport:
    """On which grid each matrix of a model lies; nothing is written.

    Args:
        source: a GGUF file, a Hugging Face folder, or an id on the hub.
        progress: called with the name of every tensor once it has been looked at.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    opened = open_source(source)
    found = []
    for _, examined in _matrices(opened, allow_inexact=False, progress=progress):
        found.append(examined.report)
    return ImportReport(source, opened.kind, found, opened.notes)


def import_model(
    source: str,
    output: str | Path,
    *,
    tokenizer: str | None = None,
    allow_inexact: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda name: None,
) -> ImportReport:
    """Write the fused checkpoint of a model whose weights lie on grids already.

    Args:
        source: a GGUF file, a Hugging Face folder, or an id on the hub.
        output: the checkpoint's folder.
        tokenizer: a folder or id whose tokenizer is taken in the place of the source's.
        allow_inexact: put on the nearest grid what lies on none; it is recorded.
        overwrite: replace what is in `output`.
        progress: called with the name of every tensor once it has been looked at.

    Raises:
        UserError: a source that cannot be read, or nothing of which lies on a grid; an output that
            exists or cannot be written.
    """
    output = Path(output)
    refuse_overlap(output, [("SOURCE", source), ("--tokenizer", tokenizer)])
    refuse_existing(output, overwrite)
    refuse_unwritable(output, folder=True)
    opened = open_source(source)
    words = hub.load_tokenizer(tokenizer) if tokenizer else opened.tokenizer()
    opened.read_generation_config()
    output.parent.mkdir(parents=True, exist_ok=True)
    with held(output), explain_os_errors(output), published(output) as staging:
        writer = CheckpointWriter(staging)
        plan, reports = _write(opened, writer, allow_inexact, progress)
        report = ImportReport(source, opened.kind, reports, opened.notes, str(output))
        base = {
            "name": _public(source),
            "revision": None,
            **source_facts(source).to_manifest(),
            "dtype": opened.dtype,
        }
        told = _provenance(report)
        writer.finish(opened.skeleton, words, plan, base, told, license_files(source))
    return report


def _write(
    source: Source, writer: CheckpointWriter, allow_inexact: bool, progress: Progress
) -> tuple[SurgeryPlan, list[TensorReport]]:
    beside = dict.fromkeys(TextPart(source.skeleton).beside(), BESIDE_TEXT)
    plan, reports = SurgeryPlan(GRIDS["q4_0"], {}, beside), []
    seen = set()
    for (name, matrix), examined in _matrices(source, allow_inexact, progress):
        reports.append(examined.report)
        seen.add(_parameter(name))
        if examined.tensor is None:
            writer.add_floating(_parameter(name), examined.read.values)
            if matrix.kind != WeightKind.EMBEDDING:
                plan.kept[name] = matrix.never or _NOT_ON_A_GRID
            if matrix.tied_to:
                plan.kept[matrix.tied_to] = _NOT_ON_A_GRID
            continue
        writer.add_weight(examined.tensor, matrix.kind)
        plan.quantized[name] = Target(
            matrix.shape, examined.tensor.grid, matrix.kind, tied_to=matrix.tied_to
        )
    if not plan.quantized:
        raise UserError(
            f"no weight of {source.name} lies on a grid, so there is nothing to import"
            f"{_nearest(reports)}; train it instead (`lrqat train --model`), or look at each "
            "tensor with `lrqat inspect`"
        )
    for parameter in source.shapes:
        if parameter not in seen:
            writer.add_floating(parameter, source.read(parameter).values)
            progress(parameter)
    return plan, reports


def _matrices(
    source: Source, allow_inexact: bool, progress: Progress
) -> Iterator[tuple[tuple[str, Matrix], _Examined]]:
    """Every matrix that can be on a grid, in the order of the files."""
    known = {_parameter(name): (name, matrix) for name, matrix in find_matrices(source.skeleton)
             if matrix.kind in (WeightKind.LINEAR, WeightKind.EMBEDDING)}  # fmt: skip
    for parameter in source.shapes:
        if parameter in known:
            name, matrix = known[parameter]
            read = source.read(parameter)
            yield known[parameter], _examine(name, matrix, read, allow_inexact)
            progress(parameter)


def _examine(name: str, matrix: Matrix, read: Read, allow_inexact: bool) -> _Examined:
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
    return _Examined(read, recovered.tensor if recovered else None, report)


def _parameter(name: str) -> str:
    return f"{name}.weight"


def _nearest(reports: list[TensorReport]) -> str:
    near = max(reports, key=lambda each: each.share, default=None)
    if near is None or near.nearest is None:
        return ""
    return f" ({near.name} comes nearest, with {near.share:.2%} of its weights on {near.nearest})"


def _public(source: str) -> str:
    """A source as others may read it: where it lay on this machine is nobody's business."""
    return Path(source).resolve().name if Path(source).exists() else source


def _provenance(report: ImportReport) -> dict[str, Any]:
    inexact = {e.name: {"grid": e.grid, "share": e.share, "difference": e.difference}
               for e in report.inexact}  # fmt: skip
    converted = {e.name: e.note for e in report.tensors if e.grid is not None and e.note}
    return {
        "imported": {
            "source": _public(report.source),
            "kind": report.kind,
            **({"inexact": inexact} if inexact else {}),
            **({"converted": converted} if converted else {}),
        }
    }
