"""Opening an ONNX folder that may come from anybody.

The data of a model lies beside it, or a link there leads to it within a Hugging Face cache; a path
or a link that leads anywhere else is refused.
"""

import mmap
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from exporters.protobuf import fields
from lrqat.errors import UserError, refusing
from lrqat.foreign_files import open_regular

MODEL, DATA = "model.onnx", "model.onnx_data"
# A protobuf cannot be larger; refusing first keeps a hostile one from being read into memory.
_MOST_PROTO_BYTES = 1 << 31
# A graph of 130 layers of 60 nodes each has some 300,000 fields. Messages count for several, since
# what protobuf and onnx_ir make of them takes more memory.
_MOST_FIELDS, _NODE, _MESSAGE = 1 << 20, 16, 4
_VARINTS = {onnx.ModelProto.DESCRIPTOR.fields_by_name["ir_version"].type, 5, 4}  # int64, 32, uint64


class OnnxFileError(UserError):
    """A file that is not a valid ONNX model, or whose data is missing or outside its folder."""


def read_model(folder: Path) -> ir.Model:
    """Parse model.onnx; its data is mapped when used.

    Raises:
        OnnxFileError: it is no valid ONNX file, or its data is missing, cut off or elsewhere.
    """
    path = folder / MODEL
    if not path.is_file():
        raise OnnxFileError(f"{folder} holds no {MODEL}; export it with `lrqat export`")
    if path.stat().st_size >= _MOST_PROTO_BYTES:
        raise OnnxFileError(f"{path} is larger than an ONNX protobuf can be; it is damaged")
    with refusing(OnnxFileError, f"{path} is not a valid ONNX file", "export it again"):
        _refuse_many_fields(path)
        model = ir.load(path)
    if len(model.graph) == 0:  # no bytes at all are a valid protobuf
        raise OnnxFileError(f"{path} holds no graph; it is truncated, export it again")
    data_files(model, folder)
    return model


def _refuse_many_fields(path: Path) -> None:
    """Raise ValueError for a protobuf of millions of fields, which take a hundred bytes each."""
    if not path.stat().st_size:
        return
    with open_regular(path) as stream:
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    with data:
        left = _MOST_FIELDS
        messages: list[tuple[Any, int, int]] = [(onnx.ModelProto.DESCRIPTOR, 0, len(data))]
        while messages:
            kind, start, end = messages.pop()
            known = kind.fields_by_number
            for number, (first, last) in fields(data, start, end):
                field = known.get(number)
                inner = None if field is None else field.message_type
                left -= 1
                if inner is not None:
                    left -= _NODE if inner.name == "NodeProto" else _MESSAGE
                    messages.append((inner, first, last))
                elif field is not None and field.type in _VARINTS:
                    left -= (last - first) // 8  # of a byte each, which become 8
                if left < 0:
                    raise ValueError("it has millions of nodes, attributes or other parts")


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
    return _resolved(folder, location).stat().st_size


def _resolved(folder: Path, location: str) -> Path:
    """Where the data really is; a link may lead to where the Hugging Face cache keeps its files.

    There models/x/snapshots/REVISION/model.onnx_data is a link to models/x/blobs/HASH.
    """
    path, home = (folder / location).resolve(strict=True), folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots" and (folder / location).parent.resolve() == home:
        allowed.append(home.parent.parent / "blobs")
    if not path.is_file() or not any(path.is_relative_to(place) for place in allowed):
        raise ValueError(f"{location!r} is no file of {folder}")
    return path


def resolve_links(model: ir.Model, folder: Path) -> None:
    """Let tensors point at the files that links lead to: onnx_ir, rightly careful, follows none.

    Raises:
        ValueError: a link that leads elsewhere; `read_model` has looked.
    """
    for value in model.graph.initializers.values():
        held = value.const_value
        if isinstance(held, ir.ExternalTensor):
            path = _resolved(folder, str(held.location))
            if path != folder.resolve() / held.location:
                value.const_value = ir.ExternalTensor(
                    path.name, held.offset, held.length, held.dtype,
                    shape=held.shape, name=str(held.name), base_dir=path.parent,
                )  # fmt: skip
