r"""The compact form: the trained integers in the graph of ONNX Runtime GenAI's own model builder.

    lrqat export runs/a --format onnx-genai

The builder makes a graph of ONNX Runtime's own operators (GroupQueryAttention, MatMulNBits), which
runs in ONNX Runtime only, in place of standard ones (`exporters.onnx`), which run everywhere. It
is given the checkpoint in a format that it loads as it is, Olive's, and its file is read back and
compared with the checkpoint.
"""

from typing import TYPE_CHECKING

from lrqat.deferred import deferred_names

# Imported on first use: what `Options` has to say, for `--help`, needs no torch.
_PLACES = {
    "Options": "exporters.onnx_genai.options",
    "Plan": "exporters.onnx_genai.planning",
    "Report": "exporters.onnx.writer",
    "default_name": "exporters.onnx_genai.planning",
    "inspect": "exporters.onnx_genai.inspection",
    "plan": "exporters.onnx_genai.planning",
    "verify": "exporters.onnx_genai.verification",
    "write": "exporters.onnx_genai.writer",
}

__all__ = [
    "Options",
    "Plan",
    "Report",
    "default_name",
    "inspect",
    "plan",
    "verify",
    "write",
]


__getattr__ = deferred_names(__name__, _PLACES)

if TYPE_CHECKING:  # where mypy sees whether this is a format
    import exporters.onnx_genai as package
    from exporters.format import Format
    from exporters.onnx.writer import Report
    from exporters.onnx_genai.inspection import inspect
    from exporters.onnx_genai.options import Options
    from exporters.onnx_genai.planning import Plan, default_name, plan
    from exporters.onnx_genai.verification import verify
    from exporters.onnx_genai.writer import write

    _FORMAT: Format[Options, Plan] = package
