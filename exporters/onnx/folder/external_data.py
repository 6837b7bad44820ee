"""Saving the graph and, beside it, its weights: in one file, or in several past 2 GiB.

    model.onnx   model.onnx_data   model.onnx_data_1   model.onnx_data_2 ...

A tensor is never cut, so one that is larger has a file of its own. These are the names that
transformers.js asks for (src/utils/model-loader.js, `getExternalDataChunkNames`), whose buffers
end at 2 GiB; every other reader finds the files by the names that model.onnx holds.
"""

from pathlib import Path

import onnx_ir as ir
from onnx_ir.external_data import convert_tensors_to_external

from exporters.onnx.folder.model_file import DATA, MODEL

MOST_BYTES = (1 << 31) - 1
# External data that starts on a page can be mapped into memory.
_PAGE = 4096
# Smaller tensors are constants of the graph; ONNX Runtime wants to see those while it loads.
_INSIDE = 256


def save(model: ir.Model, folder: Path, most_bytes: int = MOST_BYTES) -> None:
    """Write `model` to `folder`/model.onnx; lazy tensors are read one at a time.

    Args:
        model: the graph; its initializers become references to the files.
        folder: where to.
        most_bytes: largest file of weights, unless one tensor alone is larger.
    """
    stored = [value for value in model.graph.initializers.values() if _nbytes(value) > _INSIDE]
    for i, values in enumerate(_files(stored, most_bytes)):
        tensors = [value.const_value for value in values if value.const_value is not None]
        written = convert_tensors_to_external(tensors, folder, data_name(i), alignment=_PAGE)
        for value, tensor in zip(values, written, strict=True):
            value.const_value = tensor
    ir.save(model, folder / MODEL)


def data_name(index: int) -> str:
    """Name of the file of weights number `index`, from 0."""
    return f"{DATA}_{index}" if index else DATA


def data_paths(folder: Path) -> list[Path]:
    """The files of weights in `folder`, in order."""
    count = len(list(folder.glob(f"{DATA}*")))
    return [folder / data_name(i) for i in range(count)]


def _files(values: list[ir.Value], most_bytes: int) -> list[list[ir.Value]]:
    """`values` in order, as many in a file as it may hold."""
    files: list[list[ir.Value]] = []
    size = 0
    for value in values:
        needed = -(-_nbytes(value) // _PAGE) * _PAGE
        if not files or size + needed > most_bytes:
            files.append([])
            size = 0
        files[-1].append(value)
        size += needed
    return files


def _nbytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes
