"""Say in the file which operators it needs and where it comes from, and nothing about the machine.

A graph may declare a newer operator set than the one it was traced for: torch knows 23 at most,
and 2-bit types came with 25. The operators of a decoder mean the same in both; only lists of
types grew.
"""

import json

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from exporters.onnx.options import OPTIONS_KEY, PRECISION_ENTRY
from exporters.onnx.plans import Plan
from exporters.onnx.tracing.trace import MOST_OPSET
from exporters.provenance import provenance
from lrqat import __version__

_IR_VERSION = 13  # the first with 2-bit types


def describe(model: ir.Model, plan: Plan) -> bool:
    """Declare the plan's operator set and add `lrqat.*` properties; always a change.

    The tracer's metadata (stack traces with local paths) goes.
    """
    opset = plan.options.opset
    if opset and opset > MOST_OPSET:
        model.opset_imports[""] = opset
        model.ir_version = _IR_VERSION
    ClearMetadataAndDocStringPass()(model)
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    for key, value in provenance(plan.checkpoint).items():
        model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    if PRECISION_ENTRY in plan.session_entries:
        model.metadata_props[PRECISION_ENTRY] = plan.session_entries[PRECISION_ENTRY]
    model.metadata_props[OPTIONS_KEY] = json.dumps(plan.options.to_json(), sort_keys=True)
    model.producer_name, model.producer_version = "lrqat", __version__
    model.graph.name = "main_graph"
    return True
