"""Constant folding and fusion, as torch.onnx.export does them, but never of a weight.

Torch's own optimiser (switched off in `exporters.onnx.tracing.trace`) evaluates operations on small
initializers while exporting. Ours hold stand-ins at that time: Gemma's `1 + weight`, for one, would
be computed from a stand-in, and the file would hold the sum where the trained weight belongs. So
folding stops at every planned tensor; a runtime does it at load, from the real values.

Source: onnxscript/_framework_apis/torch_2_9.py, `optimize`.
"""

from collections.abc import Iterable
from typing import Any

import onnx_ir as ir
from onnxscript.optimizer import optimize_ir
from onnxscript.rewriter import onnx_fusions


def simplify(model: ir.Model, weights: Iterable[str]) -> bool:
    """Fold constants and fuse attention, rotary embedding and normalisation, in place.

    Args:
        model: the traced graph, its initializers named as planned.
        weights: names of the initializers that must keep their own values.
    """
    names = set(weights)

    def may_fold(node: ir.Node) -> bool | None:
        reads_weight = any(value is not None and value.name in names for value in node.inputs)
        return False if reads_weight else None  # None: by onnxscript's own rules

    before = _wiring(model)
    optimize_ir(model, should_fold=may_fold)  # does not tell whether it found anything
    onnx_fusions.fuse(model)
    return _wiring(model) != before


def _wiring(model: ir.Model) -> list[Any]:
    """Every node with what it reads."""
    return [
        (node.op_type, *(value and value.name for value in node.inputs)) for node in model.graph
    ]
