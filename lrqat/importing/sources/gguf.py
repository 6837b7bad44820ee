"""A GGUF file: integers and scales of its block types, and what no grid has as plain weights."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from exporters.gguf.blocks import float_blocks, integer_blocks
from exporters.gguf.file.header import TensorInfo
from exporters.gguf.tensors.sources import Source as FileTensor
from lrqat.checkpoint.reader import QuantizedTensor
from lrqat.errors import ModelError
from lrqat.importing.recovery import row_spans
from lrqat.importing.sources.gguf_fields import grid_of, to_grid
from lrqat.importing.sources.source import Read
from lrqat.models import hub
from lrqat.models.configuration import build_config
from lrqat.models.from_gguf.configuration import INSTEAD, read_generation
from lrqat.models.from_gguf.folder import existing, read_file
from lrqat.models.from_gguf.weights import dequantised, parameter_sources

_TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


class GgufSource:
    """A `Source` of a file, of several the first."""

    kind = "GGUF"

    def __init__(self, name: str) -> None:
        """Read the header. Raises ModelError for a model that is not understood."""
        self.name, path = name, existing(name)
        self._header, values = read_file(path)
        config = build_config(path, values)
        with torch.device("meta"):
            self.skeleton: Any = AutoModelForCausalLM.from_config(config)
        self._sources = parameter_sources(path, self._header, self.skeleton, values)
        order = sorted(self._sources, key=lambda n: self._info(n).start)
        # What the model computes itself, such as rotary frequencies, is no parameter of it.
        self.shapes = {n: self._sources[n].shape for n in order if n != "computed"}
        self.dtype = "float32"
        self.notes = []
        others = sorted({self._info(n).type_name for n in self.shapes} - {"F32", "F16", "BF16"})
        lost = [kind for kind in others if grid_of(kind) is None]
        if lost:
            self.notes.append(f"{', '.join(lost)} have no grid: dequantised to plain weights")

    def _info(self, parameter: str) -> TensorInfo:
        return self._header.tensors[self._sources[parameter].name]

    def read(self, parameter: str) -> Read:
        """See `Source`."""
        info, source = self._info(parameter), self._sources[parameter]
        kind = info.type_name.lower()
        values = _values(info, source, _TYPES.get(kind, torch.float32))
        block = integer_blocks().get(kind)
        if block is None or grid_of(kind) is None:
            note = "" if kind in float_blocks() else f"{info.type_name} has no grid"
            return Read(info.type_name, values, note=note)
        pieces = []
        for rows in row_spans(*values.shape):
            name = parameter.removesuffix(".weight")
            pieces.append(to_grid(name, block, block.unpack(info.read(rows))))
        found = [piece for piece in pieces if piece is not None]
        if len(found) < len(pieces) or len({piece.grid for piece in found}) > 1:
            return Read(info.type_name, values, note="it has numbers that no grid has")
        tensor = QuantizedTensor.join(found[0].name, found)
        if source.row_order is not None:
            tensor = tensor.take(np.argsort(source.row_order))
        return Read(info.type_name, values, tensor)

    def tokenizer(self) -> Any:
        """See `Source`."""
        return hub.load_tokenizer(self.name)

    def read_generation_config(self) -> None:
        """See `Source`."""
        for key, value in read_generation(self._header).items():
            setattr(self.skeleton.generation_config, key, value)


def _values(info: TensorInfo, source: FileTensor, dtype: torch.dtype) -> Tensor:
    """A parameter as gguf dequantises it, in the rows' order of Hugging Face."""
    made = torch.empty(source.shape, dtype=dtype).view(source.rows, -1)
    for rows in row_spans(*made.shape):
        made[rows] = torch.from_numpy(dequantised(info, info.read(rows))).view(made[rows].shape)
    if source.offset:
        shifted = made - source.offset
        if not torch.equal(shifted + source.offset, made):
            raise ModelError(
                f"{info.path}: {info.name} less {source.offset:g} is no {dtype}; {INSTEAD}"
            )
        made = shifted
    if not torch.isfinite(made).all():
        raise ModelError(f"{info.path}: {info.name} holds NaN or infinity; use an intact copy")
    if source.row_order is not None:
        placed = torch.empty_like(made.view(source.shape))
        placed[torch.from_numpy(source.row_order)] = made.view(source.shape)
        return placed
    return made.view(source.shape)
