"""Say in the file where it comes from, and nothing about the machine that wrote it."""

import json
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from exporters.onnx.planning import Plan
from lrqat import __version__
from lrqat.manifest import FILE_NAME, sha256_of


def describe(model: ir.Model, plan: Plan) -> None:
    """Drop the tracer's metadata (stack traces with local paths) and add `lrqat.*` properties."""
    ClearMetadataAndDocStringPass()(model)
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props.update(provenance(plan))
    model.producer_name, model.producer_version = "lrqat", __version__
    model.graph.name = "main_graph"


def provenance(plan: Plan) -> dict[str, str]:
    """Where the checkpoint comes from, and the perplexity it must have; values are text."""
    manifest = plan.checkpoint.manifest
    training = manifest.get("training") or {}
    facts: dict[str, Any] = {
        "lrqat.exporter_version": __version__,
        "lrqat.version": manifest["tool"].get("version"),
        "lrqat.git_commit": manifest["tool"].get("git_commit"),
        "lrqat.grid": ",".join(sorted(plan.checkpoint.grids)),
        "lrqat.base_model": manifest["base_model"].get("name"),
        "lrqat.base_model_revision": manifest["base_model"].get("revision"),
        "lrqat.data_sha256": training.get("data_sha256"),
        "lrqat.checkpoint_sha256": sha256_of(plan.checkpoint.path / FILE_NAME),
    }
    for key, value in (manifest.get("reference") or {}).items():
        facts[f"lrqat.reference.{key}"] = value
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in facts.items()
        if value is not None
    }
