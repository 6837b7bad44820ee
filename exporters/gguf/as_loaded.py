"""What llama.cpp computes with once it has loaded a file: what its types make of values.

Types round unquantized tensors as the user asked (an embedding in Q8_0, matrices in F16), and every
type of weights has one that activations are rounded to before the two are multiplied.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporters.gguf.architectures import find_architecture
from exporters.gguf.blocks import integer_blocks
from exporters.gguf.file.shards import read_model
from exporters.gguf.provenance import CONVERTER
from exporters.gguf.tensors.rounded_values import value_blocks
from exporters.gguf.tensors.sources import Source, find_sources
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import ExportRefusedError

_HEAD, _EMBEDDING = "output.weight", "token_embd.weight"


def activation_types(path: str | Path, checkpoint: Checkpoint) -> dict[str, str]:
    """The types that llama.cpp rounds activations to in the products of a file.

    Args:
        path: a GGUF file, of several the first.
        checkpoint: the fused checkpoint that it is an export of.

    Returns:
        By the checkpoint's name of a matrix (of a trained one, its module): "q8_0", "q8_1" or
        "q8_k" under integer types, else "f32", "f16" or "bf16". In a file that llama.cpp's own
        converter laid out, trained weights alone, where they all have one type.

    Raises:
        GgufFileError: the file is not a valid GGUF file.
    """
    header = read_model(Path(path))
    stored = {name: info.type_name.lower() for name, info in header.tensors.items()}
    if CONVERTER in header.metadata:
        used = {_activations(name) for name in stored.values() if name in integer_blocks()}
        return dict.fromkeys(checkpoint.quantized_names, used.pop()) if len(used) == 1 else {}
    found: dict[str, str] = {}
    for source in _sources(checkpoint):
        # An embedding that is the head, too, may be stored a second time, to be multiplied with.
        only_looked_up = source.name == _EMBEDDING and _HEAD in stored
        if len(source.shape) > 1 and source.name in stored and not only_looked_up:
            found[source.origin] = _activations(stored[source.name])
    return found


def _activations(type_name: str) -> str:
    block = integer_blocks().get(type_name)
    return type_name if block is None else block.ACTIVATIONS


def rounded_tensors(
    path: str | Path, checkpoint: Checkpoint
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Floating tensors that the file's types round, by the checkpoint's names: what they become.

    Values are rounded one by one, or in blocks of rows that stay where they are (Q8_0, Q6_K), so it
    does not matter how the file orders them.

    Raises:
        ExportRefusedError: an embedding that is stored a second time as the head, in two types.
    """
    header = read_model(Path(path))
    if CONVERTER in header.metadata:  # whose floating tensors are float32
        return
    tensors, types = header.tensors, dict[str, str]()
    for source in _sources(checkpoint):
        if source.quantized or source.values is not None or source.name not in tensors:
            continue
        type_name = tensors[source.name].type_name.lower()
        if types.setdefault(source.origin, type_name) != type_name:
            raise ExportRefusedError(
                f"{source.origin} is stored as {types[source.origin]} and as {type_name}, and "
                "PyTorch has it once; export it with the same --embedding-type and --head-type"
            )
    for name, type_name in types.items():
        if type_name in value_blocks() and type_name != "f32":
            exact = checkpoint.floating(name).astype(np.float32)
            rows = exact.reshape(-1, exact.shape[-1])
            block = value_blocks()[type_name]
            kept = block.unpack(block.pack(rows))
            if not np.array_equal(kept, rows):
                yield name, kept.reshape(exact.shape)


def _sources(checkpoint: Checkpoint) -> list[Source]:
    return find_sources(checkpoint, find_architecture(checkpoint.config))
