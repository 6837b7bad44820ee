"""An exported file or folder as a part of a report."""

import math
from pathlib import Path

from exporters.format import FORMATS, recognise
from exporters.inspection import inspect
from lrqat.reporting.layers import Progress
from lrqat.reporting.material import Layer, Model

# Whoever wrote the file, in the order of trust: key of its metadata.
_BASE = ("lrqat.base_model", "general.base_model.0.name", "general.name")


def is_export(path: Path) -> bool:
    """A GGUF file or an ONNX folder, ours or anybody's."""
    return recognise(path) in FORMATS


def read_export(path: Path, base: str | None, progress: Progress) -> Model:
    """What a file says of itself. Raises UserError for one that is damaged."""
    found = inspect(path)
    shares = {t: total.weights / max(1, found.weights) for t, total in found.types.items()}
    said = (found.provenance.get(key) for key in _BASE)
    return Model(
        path=str(path),
        kind=found.kind,
        base=next((str(name) for name in said if name), ""),
        grids=dict(sorted(shares.items(), key=lambda item: -item[1])),
        bytes=found.bytes,
        bits_per_weight=found.bits_per_weight,
        layers=_tensors(path) if found.kind == "GGUF" else (),
    )


def _tensors(path: Path) -> tuple[Layer, ...]:
    """The matrices of a GGUF file."""
    from exporters.gguf.file.shards import read_model

    tensors = read_model(path, unknown_types=True).tensors
    return tuple(
        Layer(name, info.type_name, 8 * info.nbytes / count, count)
        for name, info in tensors.items()
        if len(info.shape) > 1 and (count := math.prod(info.shape))
    )
