"""Replace every stand-in by the checkpoint's tensor, read and laid out only when it is written."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from exporters.onnx.plans import Plan, PlannedTensor
from exporters.onnx.weights.initializers import pieces, stored
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import ExportRefusedError


def attach_weights(model: ir.Model, plan: Plan, progress: Callable[[str], None]) -> bool:
    """Attach the planned tensors to the graph's initializers; a change if there are any.

    Args:
        model: the traced graph, its initializers named as planned.
        plan: what the file must hold.
        progress: called with the name of each tensor when it is read for writing.

    Raises:
        ExportRefusedError: the tracer lost a tensor, or changed one's shape.
    """
    initializers = model.graph.initializers
    for tensor in plan.tensors:
        value = initializers.get(tensor.name)
        if value is None or not value.uses():
            raise ExportRefusedError(
                f"the graph of this model does not use {tensor.name}: the exporter folded it away, "
                "or the model ignores it; report the architecture"
            )
        shape = () if value.shape is None else tuple(value.shape)
        if shape != tensor.shape:
            raise ExportRefusedError(
                f"{tensor.name} has shape {shape} in the graph and {tensor.shape} in the plan"
            )
        value.dtype = tensor.dtype
        value.const_value = WeightOnDisk(tensor, plan.checkpoint, progress)
    return bool(plan.tensors)


class WeightOnDisk(ir.LazyTensor):
    """A planned tensor that stays in the checkpoint until it is written, some rows at a time.

    Args:
        tensor: what it is in the file.
        checkpoint: where its numbers are.
        progress: called with its name when it is read for writing.
    """

    def __init__(
        self, tensor: PlannedTensor, checkpoint: Checkpoint, progress: Callable[[str], None]
    ) -> None:
        shape = ir.Shape(tensor.shape)
        super().__init__(self._whole, dtype=tensor.dtype, shape=shape, name=tensor.name)
        self._source = tensor.form, checkpoint, tensor.source, tensor.dtype
        self._progress = progress

    def _whole(self) -> ir.TensorProtocol:
        self._progress(str(self.name))
        return ir.Tensor(stored(*self._source), dtype=self.dtype, name=self.name)

    def tofile(self, file: Any) -> None:
        """Write its bytes to a binary file."""
        if self.dtype.bitwidth < 8:  # the last number of a piece may share its byte with the next
            return super().tofile(file)
        self._progress(str(self.name))
        for piece in pieces(*self._source):
            file.write(piece.reshape(-1).view(np.uint8))
