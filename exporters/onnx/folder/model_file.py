"""Opening an ONNX folder that may come from anybody.

The data of a model lies beside it, or a link there leads to it within a Hugging Face cache; a path
or a link that leads anywhere else is refused.
"""

from pathlib import Path

import onnx_ir as ir

from lrqat.errors import UserError, first_line

MODEL, DATA = "model.onnx", "model.onnx_data"
# A protobuf cannot be larger; refusing first keeps a hostile one from being read into memory.
_MOST_PROTO_BYTES = 1 << 31


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
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf, onnx_ir and numpy each raise their own on hostile bytes
        raise OnnxFileError(f"{path} is not a valid ONNX file: {first_line(error)}") from None
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
