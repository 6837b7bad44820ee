"""What a path holds, told from its name and its first bytes.

Nothing of a format is imported for that: a file is recognised where its exporter cannot run too.
And nothing is trusted: what is damaged is not recognised, or is refused by whoever reads it.
"""

import mmap
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

_MAGIC = b"GGUF"
_MODEL = "model.onnx"
# Numbers of fields in onnx.proto: ModelProto.graph, GraphProto.node, NodeProto.op_type.
_GRAPH, _NODE, _OP_TYPE = 7, 1, 4
_PRODUCT = b"MatMulNBits"
# A product of the first layer is soon found, if there is one; a hostile file may never end.
_MOST_NODES, _MOST_FIELDS = 1 << 14, 16
Place = tuple[int, int]  # start and end of a message in the file
_VARINT, _BYTES, _FIXED_SIZES = 0, 2, {1: 8, 5: 4}


def is_gguf(path: Path) -> bool:
    """A file that is called so, whether it is there or not, or that begins so."""
    if path.is_dir():
        return False
    return path.suffix == ".gguf" or (path.is_file() and _begins_with(path, _MAGIC))


def is_qdq(path: Path) -> bool:
    """A folder with a model.onnx, but for one in the compact form."""
    return (path / _MODEL).is_file() and not is_compact(path)


def is_compact(path: Path) -> bool:
    """A folder whose model.onnx multiplies with integers by MatMulNBits.

    The operator is ONNX Runtime's own: the graphs of onnxruntime-genai's builder have it
    (`exporters.onnx_genai`), and those in standard operators (`exporters.onnx`) never do. Of the
    protobuf only the beginnings of fields are read, and no weights.
    """
    if not (path / _MODEL).is_file():
        return False
    try:
        with (path / _MODEL).open("rb") as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        with data:
            return any(
                end - start == len(_PRODUCT) and data[start:end] == _PRODUCT
                for graph in _parts(data, _GRAPH, (0, len(data)), _MOST_FIELDS)
                for node in _parts(data, _NODE, graph, _MOST_NODES)
                for start, end in _parts(data, _OP_TYPE, node, _MOST_FIELDS)
            )
    except (OSError, ValueError):  # not to be read, empty, or no protobuf
        return False


def _begins_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic


def _parts(data: mmap.mmap, number: int, message: Place, most: int) -> Iterator[Place]:
    """The fields `number` among the first `most` fields of a message."""
    fields = islice(_fields(data, *message), most)
    return (place for found, place in fields if found == number)


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, Place]]:
    """Number and place of every field of a message; number 0 stands for those without a length.

    Raises:
        ValueError: it is no message.
    """
    while start < end:
        key, start = _varint(data, start)
        form = key & 7
        size = _FIXED_SIZES.get(form, 0)
        if form in (_VARINT, _BYTES):
            value, start = _varint(data, start)
            size = value if form == _BYTES else 0
        elif not size:
            raise ValueError("a form of fields that protobufs no longer have")
        if start + size > end:
            raise ValueError("a field that is longer than its message")
        yield (key >> 3 if form == _BYTES else 0), (start, start + size)
        start += size


def _varint(data: mmap.mmap, start: int) -> tuple[int, int]:
    """A number of at most ten bytes, seven bits each, lowest first; and where it ends."""
    value = 0
    for i, byte in enumerate(data[start : start + 10]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, start + i + 1
    raise ValueError("a number that does not end")
