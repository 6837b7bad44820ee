"""An exported file or folder as a part of a report."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exporters.format import FORMATS, recognise
from exporters.inspection import inspect
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.errors import UserError
from lrqat.reporting.layers import Progress, open_base, original_of, relative_error
from lrqat.reporting.material import Layer, Model

_WEIGHT = ".weight"
# Where a file says what it was made from, in the order of trust.
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
        layers=_layers(path, base, progress) if found.kind == "GGUF" else (),
        base_path=base,
    )


def _layers(path: Path, base: str | None, progress: Progress) -> tuple[Layer, ...]:
    """The matrices of a GGUF file; with a base under the names that they have there."""
    if base is not None:
        try:
            return tuple(_compared(path, base, progress))
        except UserError:  # a model that only llama.cpp knows, or a base that is none of its kind
            pass
    from exporters.gguf.file.shards import read_model

    tensors = read_model(path, unknown_types=True).tensors
    return tuple(_layer(name, info, None) for name, info in tensors.items() if len(info.shape) > 1)


def _compared(path: Path, base: str, progress: Progress) -> Iterator[Layer]:
    from lrqat.models.from_gguf.folder import stored_parameters

    weights = open_base(base)
    for parameter, info, read in progress(stored_parameters(path)):
        if len(info.shape) == 2 and parameter.endswith(_WEIGHT):
            name = parameter.removesuffix(_WEIGHT)
            kind = WeightKind.LINEAR
            original = None if weights is None else original_of(weights, name, kind)
            rows = [] if original is None else [read().float().numpy()]
            yield _layer(name, info, None if original is None else relative_error(rows, original))


def _layer(name: str, info: Any, error: float | None) -> Layer:
    count = max(1, math.prod(info.shape))
    return Layer(name, info.type_name, 8 * info.nbytes / count, count, error)
