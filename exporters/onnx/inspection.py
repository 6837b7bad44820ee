"""What an ONNX folder holds, ours or anybody's; no weights are read."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from exporters.description import Description, plain_items, totals
from exporters.onnx.folder.model_file import MODEL, OnnxFileError, data_files, read_model
from lrqat.foreign_files import ForeignFileError, read_json

_VOCABULARY = ("bos_token_id", "eos_token_id", "pad_token_id", "vocab_size")


def inspect(path: Path) -> Description:
    """Describe the ONNX folder `path`.

    Raises:
        OnnxFileError: a file that is damaged, or data outside the folder.
    """
    model = read_model(path)
    return describe(path, model, "ONNX", stored_tensors(path, model).values())


def stored_tensors(path: Path, model: ir.Model) -> dict[str, tuple[str, int, int]]:
    """Type, elements and bytes of every initializer, by name. Raises OnnxFileError on odd ones."""
    try:
        return {
            name: (str(held.dtype), math.prod(held.shape.numpy()), held.nbytes)
            for name, value in model.graph.initializers.items()
            if (held := value.const_value) is not None
        }
    except Exception as error:  # onnx_ir raises its own on odd shapes and types
        raise OnnxFileError(f"{path / MODEL} has an odd initializer: {error}") from None


def describe(
    path: Path, model: ir.Model, kind: str, tensors: Iterable[tuple[str, int, int]]
) -> Description:
    """What the folder holds beside its `tensors`, given as (type, weights, bytes)."""
    files = [path / MODEL, *data_files(model, path)]
    settings = _settings(path)
    opsets = {f"opset {domain or 'ai.onnx'}": v for domain, v in model.opset_imports.items()}
    return Description(
        kind=kind,
        files=[str(file.relative_to(path)) for file in files],
        bytes=sum(file.stat().st_size for file in files),
        types=totals(tensors),
        hyperparameters=plain_items({k: v for k, v in settings.items() if k not in _VOCABULARY}),
        vocabulary=plain_items({k: settings.get(k) for k in _VOCABULARY}),
        provenance=plain_items(
            {"producer": model.producer_name, **opsets, **dict(model.metadata_props)}
        ),
    )


def _settings(path: Path) -> dict[str, Any]:
    """The `model` entry of genai_config.json, if there is one."""
    try:
        model = read_json(path / "genai_config.json").get("model")
    except ForeignFileError:
        return {}
    return model if isinstance(model, dict) else {}
