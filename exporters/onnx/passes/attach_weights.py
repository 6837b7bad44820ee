"""Replace every stand-in by the checkpoint's tensor, read and laid out only when it is written."""

from collections.abc import Callable

import onnx_ir as ir

from exporters.onnx.planned import Plan, PlannedTensor
from exporters.onnx.weights import stored
from lrqat.checkpoint import Checkpoint
from lrqat.errors import ExportRefusedError


def attach_weights(model: ir.Model, plan: Plan, progress: Callable[[str], None]) -> None:
    """Attach the planned tensors to the graph's initializers.

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
        value.const_value = _lazy(tensor, plan.checkpoint, progress)


def _lazy(
    tensor: PlannedTensor, checkpoint: Checkpoint, progress: Callable[[str], None]
) -> ir.LazyTensor:
    def read() -> ir.TensorProtocol:
        progress(tensor.name)
        array = stored(tensor.kind, checkpoint, tensor.source, tensor.dtype)
        return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)

    return ir.LazyTensor(
        read, dtype=tensor.dtype, shape=ir.Shape(tensor.shape), name=tensor.name, cache=False
    )
