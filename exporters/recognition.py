"""What a path holds, told from its name and its first bytes.

Nothing of a format is imported for that: a file is recognised where its exporter cannot run too.
And nothing is trusted: what is damaged is not recognised, or is refused by whoever reads it.
"""

import mmap
from pathlib import Path

from exporters.protobuf import parts

_MAGIC = b"GGUF"
_MODEL = "model.onnx"
# Numbers of fields in onnx.proto: ModelProto.graph, GraphProto.node, NodeProto.op_type.
_GRAPH, _NODE, _OP_TYPE = 7, 1, 4
_PRODUCT = b"MatMulNBits"
# A product of the first layer is soon found, if there is one; a hostile file may never end.
_MOST_NODES, _MOST_FIELDS = 1 << 14, 16


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
                for graph in parts(data, _GRAPH, (0, len(data)), _MOST_FIELDS)
                for node in parts(data, _NODE, graph, _MOST_NODES)
                for start, end in parts(data, _OP_TYPE, node, _MOST_FIELDS)
            )
    except (OSError, ValueError):  # not to be read, empty, or no protobuf
        return False


def _begins_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic
