"""Say in the file where it comes from, and nothing about the machine that wrote it."""

import json

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from exporters.onnx.options import OPTIONS_KEY
from exporters.onnx.plans import Plan
from exporters.provenance import provenance
from lrqat import __version__


def describe(model: ir.Model, plan: Plan) -> None:
    """Drop the tracer's metadata (stack traces with local paths) and add `lrqat.*` properties."""
    ClearMetadataAndDocStringPass()(model)
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    for key, value in provenance(plan.checkpoint).items():
        model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    model.metadata_props[OPTIONS_KEY] = json.dumps(plan.options.to_json(), sort_keys=True)
    model.producer_name, model.producer_version = "lrqat", __version__
    model.graph.name = "main_graph"
