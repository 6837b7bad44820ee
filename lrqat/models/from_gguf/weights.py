"""The tensors of a GGUF file as safetensors: dequantised, and rows in Hugging Face's order.

The exporter's own table of tensors is used backwards: it says of every tensor of the file which
parameter it comes from, and where each of its rows lies there.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from operator import index
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from exporters.gguf.architectures import find_architecture
from exporters.gguf.blocks import integer_blocks
from exporters.gguf.file.header import Header, TensorInfo
from exporters.gguf.tensors.sources import Source, find_sources
from lrqat.atomic_files import write_json
from lrqat.errors import ModelError
from lrqat.models.from_gguf.configuration import INSTEAD, Config

DTYPE = torch.bfloat16
_PIECE_WEIGHTS = 1 << 22  # dequantised at a time
_INDEX = "model.safetensors.index.json"


class _Parameters:
    """A model's parameters in the place of a checkpoint's, for the exporter's table."""

    quantized_names: tuple[str, ...] = ()

    def __init__(self, skeleton: nn.Module, config: Config) -> None:
        tensors = skeleton.state_dict()
        if config["tie_word_embeddings"]:
            tensors.pop("lm_head.weight", None)
        self.config = config
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    @property
    def floating_names(self) -> tuple[str, ...]:
        """Of all of them."""
        return tuple(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one of them."""
        return self.shapes[name]


def write_weights(
    path: Path, header: Header, skeleton: nn.Module, config: Config, folder: Path
) -> None:
    """Write the weights of a file into `folder`, in bfloat16, in shards of five gigabytes.

    Args:
        path: of the file, for messages.
        header: its header; tensors are read as they are needed.
        skeleton: the model on the meta device.
        config: its configuration.
        folder: where model.safetensors goes.

    Raises:
        ModelError: tensors that are not the model's, or of types that are not known.
    """
    sources = parameter_sources(path, header, skeleton, config)
    empty = {
        name: torch.empty(shape, dtype=DTYPE, device="meta")
        for name, shape in _Parameters(skeleton, config).shapes.items()
    }
    split = split_torch_state_dict_into_shards(empty)
    for file, names in split.filename_to_tensors.items():
        made = {name: _parameter(header, sources[name]) for name in names}
        save_file(made, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / _INDEX, index)


def parameter_sources(
    path: Path, header: Header, skeleton: nn.Module, config: Config
) -> dict[str, Source]:
    """Parameter -> the tensor of the file that it comes from, and how its rows lie there.

    Raises ModelError as `write_weights` does.
    """
    checked = _checked(path, header, _Parameters(skeleton, config))
    return {source.origin: source for source in checked}


def read_parameters(
    path: Path, header: Header, skeleton: nn.Module, config: Config
) -> Iterator[tuple[str, TensorInfo, Callable[[], Tensor]]]:
    """Every parameter: its name, its tensor in the file, and what reads it, in bfloat16.

    The arguments and errors are those of `write_weights`.
    """
    for source in _checked(path, header, _Parameters(skeleton, config)):
        yield source.origin, header.tensors[source.name], partial(_parameter, header, source)


def _checked(path: Path, header: Header, parameters: _Parameters) -> Iterator[Source]:
    """What every tensor of the file comes from. Raises ModelError for those that do not fit."""
    architecture = find_architecture(parameters.config)
    sources = {s.name: s for s in find_sources(cast(Any, parameters), architecture)}
    strange = sorted(header.tensors.keys() - sources.keys())
    missing = sorted(sources.keys() - header.tensors.keys())
    for names, what in ((strange, "is not the model's"), (missing, "is missing")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise ModelError(f"{path}: the tensor {names[0]}{more} {what}; {INSTEAD}")
    for name, source in sources.items():
        info = header.tensors[name]
        if info.shape != source.shape:
            raise ModelError(
                f"{path}: {name} has the shape {info.shape}, and the model's hyperparameters ask "
                f"for {source.shape}; use an intact copy"
            )
        if source.values is None:
            yield source
        elif not np.array_equal(_rows(info, slice(None)).ravel(), source.values):
            raise ModelError(f"{path}: {name} is not what its hyperparameters give; {INSTEAD}")


def _parameter(header: Header, source: Source) -> Tensor:
    """A parameter, from its tensor of the file."""
    target = torch.empty(source.shape, dtype=DTYPE)
    info = header.tensors[source.name]
    step = max(1, _PIECE_WEIGHTS // source.shape[-1])
    for start in range(0, source.rows, step):
        piece = slice(start, min(start + step, source.rows))
        values = torch.from_numpy(_rows(info, piece)) - source.offset
        _place(target, source, piece, values.to(DTYPE))
    return target


def _place(target: Tensor, source: Source, piece: slice, values: Tensor) -> None:
    """Put rows of a tensor of the file where they lie in the parameter."""
    order = None if source.row_order is None else torch.from_numpy(source.row_order)
    if len(source.shape) == 1:
        target[slice(None) if order is None else order] = values[0]
    else:
        target[piece if order is None else order[piece]] = values


def _rows(info: TensorInfo, rows: slice) -> NDArray[np.float32]:
    """Rows of a tensor, dequantised: float32 (rows, columns)."""
    data = info.read(rows)
    with np.errstate(invalid="ignore", over="ignore"):  # of a damaged file; the loader refuses them
        values = dequantised(info, data)
    return values.reshape(len(data), math.prod(info.shape[-1:]))


def dequantised(info: TensorInfo, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What rows of bytes of a tensor mean, as gguf has it; raises ModelError for unknown types."""
    block = integer_blocks().get(info.type_name.lower())
    try:
        values = gguf.dequantize(data, gguf.GGMLQuantizationType(index(info.type)))
    except (NotImplementedError, ValueError):  # a type that gguf cannot read, or does not know
        if block is None:
            raise ModelError(
                f"{info.path}: {info.name} has the type {info.type_name}, which is not read here; "
                f"{INSTEAD}"
            ) from None
        values = block.factors(block.unpack(data)).weights()
    return np.asarray(values, np.float32)
