"""Packing a tensor in its type, some rows at a time, and unpacking one."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from exporters.gguf.blocks import float_blocks, integer_blocks
from exporters.gguf.tensors.rounded_values import value_blocks
from exporters.gguf.tensors.sources import Source
from lrqat.checkpoint.reader import Checkpoint, QuantizedTensor


def packed_pieces(
    checkpoint: Checkpoint, source: Source, type_name: str
) -> Iterator[NDArray[np.uint8]]:
    """Read one tensor and pack it as `type_name`: uint8 (rows, row bytes), some rows at a time."""
    if source.quantized and type_name in integer_blocks():
        for _, tensor in source.quantized_pieces(checkpoint):
            yield pack_quantized(tensor, type_name)
    else:
        for _, values in source.read_pieces(checkpoint):
            yield value_blocks()[type_name].pack(values)


def pack_quantized(tensor: QuantizedTensor, type_name: str) -> NDArray[np.uint8]:
    """Pack integers and scales as the integer type `type_name`: uint8 (rows, row bytes)."""
    block = integer_blocks()[type_name]
    return block.pack(block.encode(tensor.q, tensor.scales, tensor.grid))


def unpack_values(type_name: str, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The float32 (rows, columns) that rows of bytes of any type stand for, exactly."""
    integer = integer_blocks().get(type_name)
    if integer is None:
        return float_blocks()[type_name].unpack(data)
    return integer.factors(integer.unpack(data)).weights()
