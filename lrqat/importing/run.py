"""Importing from end to end: look at each matrix, and write what was found.

    report = import_model("model.gguf", "imported")

A weight is put on a grid only if its integers and scales give back every value that the source's
own dequantisation gives, in its type (`lrqat.importing.examination`).
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lrqat.architectures import BESIDE_TEXT
from lrqat.atomic_files import explain_os_errors, refuse_existing, refuse_overlap, refuse_unwritable
from lrqat.checkpoint.publishing import held, published
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.errors import UserError
from lrqat.grids.grid import GRIDS
from lrqat.importing.examination import Progress, TensorReport, examine_all
from lrqat.importing.sources import open_source
from lrqat.importing.sources.source import Source
from lrqat.importing.writing import CheckpointWriter
from lrqat.models import hub
from lrqat.models.license_files import license_files
from lrqat.models.source_facts import source_facts
from lrqat.models.surgery import SurgeryPlan, Target
from lrqat.models.text_part import TextPart

_NOT_ON_A_GRID = "its weights lie on no grid"


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


def examine(source: str, *, progress: Progress = lambda name: None) -> ImportReport:
    """On which grid each matrix of a model lies; nothing is written.

    Args:
        source: a GGUF file, a Hugging Face folder, or an id on the hub.
        progress: called with the name of every tensor once it has been looked at.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    opened = open_source(source)
    found = examine_all(opened, allow_inexact=False, progress=progress)
    return ImportReport(source, opened.kind, [each.report for each in found], opened.notes)


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
    seen: set[str] = set()
    for each in examine_all(source, allow_inexact=allow_inexact, progress=progress):
        reports.append(each.report)
        seen.update(each.parameters)
        name, matrix = each.name, each.matrix
        if not each.tensors:
            is_stack = matrix.kind == WeightKind.EXPERTS
            writer.add_floating(name if is_stack else f"{name}.weight", each.values())
            if matrix.kind != WeightKind.EMBEDDING:
                plan.kept[name] = matrix.never or _NOT_ON_A_GRID
            if matrix.tied_to:
                plan.kept[matrix.tied_to] = _NOT_ON_A_GRID
            continue
        for tensor in each.tensors:
            writer.add_weight(tensor, matrix.kind)
        plan.quantized[name] = Target(
            matrix.shape, each.tensors[0].grid, matrix.kind, matrix.count, tied_to=matrix.tied_to
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
