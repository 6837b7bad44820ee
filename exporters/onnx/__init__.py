r"""ONNX with standard QDQ: trained integers and scales, bit for bit, for ONNX Runtime and its kin.

    from exporters import onnx
    from lrqat.checkpoint.reader import Checkpoint

    plan = onnx.plan(Checkpoint.open("fused"), onnx.Options())
    print("\n".join(plan.summary()))
    onnx.write(plan, "fused/onnx")

The folder holds model.onnx, model.onnx_data, the tokenizer, config.json and genai_config.json, with
the names that ONNX Runtime GenAI, Optimum and transformers.js expect.
"""

from typing import TYPE_CHECKING

from exporters.format import Format
from exporters.onnx.inspection import inspect
from exporters.onnx.options import Options
from exporters.onnx.planning import default_name, plan
from exporters.onnx.plans import Plan, PlannedTensor
from exporters.onnx.verification import verify
from exporters.onnx.writer import Report, write

__all__ = [
    "Options",
    "Plan",
    "PlannedTensor",
    "Report",
    "default_name",
    "inspect",
    "plan",
    "verify",
    "write",
]

if TYPE_CHECKING:  # where mypy sees whether this is a format
    import exporters.onnx as package

    _FORMAT: Format[Options, Plan] = package
