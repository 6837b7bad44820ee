"""The quantized products of a graph: what each node multiplies with, and how that is stored.

    MatMulNBits(A, B, scales, zero_points)   attributes K, N, bits, block_size

    B            uint8 [N, K / block, block * bits / 8]     lowest bits first, 2^(bits-1) added
    scales       float [N * K / block]
    zero_points  uint8 [N * ceil(K / block * bits / 8)]     2^(bits-1) where there are none

Source: onnxruntime, docs/ContribOperators.md, com.microsoft.MatMulNBits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.onnx.folder.model_file import OnnxFileError
from exporters.onnx_genai.olive import unpack
from exporters.onnx_genai.parts import Part
from lrqat.errors import first_line

MATMUL = "MatMulNBits"
ACCURACY_LEVEL = "accuracy_level"  # attribute of the node: 0 and 1 compute in float32
_GROUP_INDEX = 4  # an input that reorders the columns


@dataclass(frozen=True)
class Product:
    """A MatMulNBits node, as it says itself.

    Attributes:
        codes: its packed integers.
        scales: its scales.
        zero_points: its packed zero-points, or None.
        rows: N, outputs.
        columns: K, inputs.
        bits: width of an integer.
        block: inputs that share a scale.
        reordered: whether an input reorders the columns.
    """

    codes: ir.Value
    scales: ir.Value
    zero_points: ir.Value | None
    rows: int
    columns: int
    bits: int
    block: int
    reordered: bool

    @property
    def names(self) -> list[str]:
        """Names of the initializers that it reads."""
        values = (self.codes, self.scales, self.zero_points)
        return [str(value.name) for value in values if value is not None]

    def reads(self, parts: list[Part]) -> bool:
        """Whether its attributes are those of `parts`, whose rows lie one after the other."""
        rows = sum(part.rows for part in parts)
        return not self.reordered and all(
            (self.rows, self.columns, self.bits, self.block)
            == (rows, part.columns, part.bits, part.block)
            for part in parts
        )

    def numbers(
        self,
    ) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int8]] | None:
        """Integers (rows, columns), scales and zero-points (rows, blocks); None: not as said above.

        Raises:
            OnnxFileError: the data cannot be read.
        """
        blocks = self.columns // self.block
        row_bytes = -(-blocks * self.bits // 8)
        codes = _read(self.codes, ir.DataType.UINT8, self.rows, self.columns * self.bits // 8)
        scales = _read(self.scales, ir.DataType.FLOAT, self.rows, blocks)
        if codes is None or scales is None:
            return None
        zero_points = np.zeros((self.rows, blocks), np.int8)
        if self.zero_points is not None:
            packed = _read(self.zero_points, ir.DataType.UINT8, self.rows, row_bytes)
            if packed is None:
                return None
            zero_points = unpack(packed, self.bits, blocks)
        return unpack(codes, self.bits, self.columns), scales, zero_points


def products(model: ir.Model) -> Iterator[Product]:
    """The quantized products of a graph, in its order; a node that lacks an input is none."""
    for node in model.graph:
        inputs = [*node.inputs, *[None] * (_GROUP_INDEX + 1)]
        if node.op_type == MATMUL and inputs[1] is not None and inputs[2] is not None:
            rows, columns, bits, block = (
                _size(node, name) for name in ("N", "K", "bits", "block_size")
            )
            reordered = inputs[_GROUP_INDEX] is not None
            yield Product(inputs[1], inputs[2], inputs[3], rows, columns, bits, block, reordered)


def array(value: ir.Value) -> NDArray[Any] | None:
    """The numbers of an initializer, or None where it has none.

    Raises:
        OnnxFileError: the data cannot be read.
    """
    if value.const_value is None:
        return None
    try:
        return value.const_value.numpy()
    except Exception as error:  # onnx_ir and numpy each raise their own
        raise OnnxFileError(
            f"the data of {value.name} cannot be read: {first_line(error)}"
        ) from None


def _size(node: ir.Node, name: str) -> int:
    """An attribute that is a number; 0 if it is none."""
    found = node.attributes.get(name)
    value = None if found is None else found.value
    return max(value, 0) if isinstance(value, int) else 0


def _read(value: ir.Value, dtype: ir.DataType, rows: int, columns: int) -> NDArray[Any] | None:
    """An initializer of (rows, columns), however it is shaped; None if it is another one."""
    held = value.const_value
    if held is None or held.dtype != dtype or held.size != rows * columns:
        return None
    numbers = array(value)
    return None if numbers is None else numbers.reshape(rows, columns)
