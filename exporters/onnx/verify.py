"""L0: the file's own bytes against the checkpoint.

Reads the ONNX file as a stranger would, from its protobuf and external data, and compares every
planned initializer element by element; and checks that the integers are what a DequantizeLinear of
the right axis and block multiplies by the right scales.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from exporters.onnx.planning import Plan, PlannedTensor, plan
from exporters.onnx.weights import KINDS
from lrqat.checkpoint import Checkpoint
from lrqat.errors import UserError

MODEL, DATA = "model.onnx", "model.onnx_data"
# A protobuf cannot be larger; refusing first keeps a hostile one from being read into memory.
_MOST_PROTO_BYTES = 1 << 31


class OnnxFileError(UserError):
    """A file that is not a valid ONNX model, or whose data is missing or outside its folder."""


def verify(
    folder: str | Path, checkpoint: Checkpoint, progress: Callable[[str], None] | None = None
) -> dict[str, int]:
    """Compare every weight of the ONNX folder with `checkpoint`.

    Returns:
        Elements that differ, by initializer name. All zero is a pass; a missing tensor, or one that
        the graph does not use as planned, counts whole.

    Raises:
        OnnxFileError: model.onnx or its data cannot be read.
        CheckpointError: the checkpoint is not valid.
    """
    planned: Plan = plan(checkpoint)
    model = read_model(Path(folder))
    mismatches = {}
    for tensor in planned.tensors:
        value = model.graph.initializers.get(tensor.name)
        mismatches[tensor.name] = _mismatches(value, tensor, checkpoint)
        if progress:
            progress(tensor.name)
    return mismatches


def read_model(folder: Path) -> ir.Model:
    """Parse model.onnx; its data is mapped when used.

    Raises:
        OnnxFileError: it is no valid ONNX file, or its data is missing, cut off or elsewhere.
    """
    path = folder / MODEL
    if not path.is_file():
        raise OnnxFileError(f"{folder} holds no {MODEL}; export it with tools/export.py")
    if path.stat().st_size >= _MOST_PROTO_BYTES:
        raise OnnxFileError(f"{path} is larger than an ONNX protobuf can be; it is damaged")
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf, onnx_ir and numpy each raise their own on hostile bytes
        raise OnnxFileError(f"{path} is not a valid ONNX file: {_first_line(error)}") from None
    if len(model.graph) == 0:  # no bytes at all are a valid protobuf
        raise OnnxFileError(f"{path} holds no graph; it is truncated, export it again")
    data_files(model, folder)
    return model


def data_files(model: ir.Model, folder: Path) -> list[Path]:
    """The files beside model.onnx that hold its weights, in the order of their use.

    Raises:
        OnnxFileError: one is missing, too short, or not in `folder`, be it by a link.
    """
    sizes: dict[str, int] = {}
    for name, value in model.graph.initializers.items():
        stored = value.const_value
        if not isinstance(stored, ir.ExternalTensor):
            continue
        location = str(stored.location)
        try:
            if location not in sizes:
                sizes[location] = _size_inside(folder, location)
            offset, needed = stored.offset or 0, stored.nbytes
            length = needed if stored.length is None else stored.length
        except Exception as error:  # the system's on odd paths, onnx_ir's on odd shapes
            raise OnnxFileError(f"the data of {name!r} is not usable: {error}") from None
        if not (offset >= 0 and 0 <= needed <= length and offset + length <= sizes[location]):
            raise OnnxFileError(
                f"the data of {name!r} cannot be read: it is cut off; export it again"
            )
    return [folder / location for location in sizes]


def _size_inside(folder: Path, location: str) -> int:
    path = (folder / location).resolve(strict=True)
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise ValueError(f"{location!r} is no file of {folder}")
    return path.stat().st_size


def _mismatches(value: ir.Value | None, tensor: PlannedTensor, checkpoint: Checkpoint) -> int:
    elements = int(np.prod(tensor.shape))
    if value is None or value.const_value is None:
        return elements
    stored = value.const_value
    if stored.dtype != tensor.dtype or tuple(stored.shape) != tensor.shape:
        return elements
    if tensor.kind == "integers" and not _used_as_planned(value, tensor, checkpoint):
        return elements
    try:
        found = stored.numpy()
    except Exception as error:  # short, missing or outside its folder
        raise OnnxFileError(
            f"the data of {tensor.name} cannot be read: {_first_line(error)}"
        ) from None
    expected = KINDS[tensor.kind].read(checkpoint, tensor.source)
    differing = int((_bits(found) != _bits(expected)).sum())
    # onnx_ir would keep every tensor, unpacked, until the model goes; the view must go before it.
    del found
    if isinstance(stored, ir.ExternalTensor):
        stored.release()
    return differing


def _used_as_planned(value: ir.Value, tensor: PlannedTensor, checkpoint: Checkpoint) -> bool:
    """Whether one DequantizeLinear consumes the integers, with their own scales, as trained."""
    consumers = value.consumers()
    if len(consumers) != 1 or consumers[0].op_type != "DequantizeLinear":
        return False
    node, block = consumers[0], checkpoint.grid(tensor.source).group_size
    scale = node.inputs[1] if len(node.inputs) == 2 else None
    axis, size = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    return (
        scale is not None
        and scale.name == f"{tensor.source}.weight_scale"
        and (axis, size) == ((1, 0) if block is None else (0, block))
    )


def _bits(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Floats as their bits, so that NaN equals itself and -0 differs from 0; integers as int8."""
    if array.dtype == np.float32:
        return np.ascontiguousarray(array).view(np.uint32)
    return array.astype(np.int8)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
