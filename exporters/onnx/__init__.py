r"""ONNX with standard QDQ: trained integers and scales, bit for bit, for ONNX Runtime and its kin.

    from exporters import onnx
    from lrqat.checkpoint.reader import Checkpoint

    plan = onnx.plan(Checkpoint.open("fused"), onnx.Options())
    print("\n".join(plan.summary()))
    onnx.write(plan, "fused/onnx")

The folder holds model.onnx, model.onnx_data, the tokenizer, config.json and genai_config.json, with
the names that ONNX Runtime GenAI, Optimum and transformers.js expect.

The way of one weight, in `writer`'s order:

    planning                       which initializers it becomes, and of which types
      weights.storage              for integers: the narrowest type, and the layout
      weights.embedding_and_head   for an unquantized embedding or head: the type asked for
    tracing.skeleton               its layer becomes a stand-in (tracing.stand_ins), which holds
                                   placeholders of the planned shapes
    tracing.trace                  the model becomes a graph, placeholders become initializers
    passes.attach_weights          the checkpoint's numbers take the place of the placeholders
      weights.initializers         how they lie in the file: `FORMS`, which planning reads too
      weights.integers             where they come from: training, or a rounding that was asked for
    verification                   the file is read back and compared, by the same `FORMS`
"""

from typing import TYPE_CHECKING

from lrqat.deferred import deferred_names

# Imported on first use: what `Options` has to say, for `--help`, needs no torch.
_PLACES = {
    "Options": "exporters.onnx.options",
    "Plan": "exporters.onnx.plans",
    "PlannedTensor": "exporters.onnx.plans",
    "Report": "exporters.onnx.writer",
    "default_name": "exporters.onnx.planning",
    "inspect": "exporters.onnx.inspection",
    "plan": "exporters.onnx.planning",
    "verify": "exporters.onnx.verification",
    "write": "exporters.onnx.writer",
}

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


__getattr__ = deferred_names(__name__, _PLACES)

if TYPE_CHECKING:  # where mypy sees whether this is a format
    import exporters.onnx as package
    from exporters.format import Format
    from exporters.onnx.inspection import inspect
    from exporters.onnx.options import Options
    from exporters.onnx.planning import default_name, plan
    from exporters.onnx.plans import Plan, PlannedTensor
    from exporters.onnx.verification import verify
    from exporters.onnx.writer import Report, write

    _FORMAT: Format[Options, Plan] = package
