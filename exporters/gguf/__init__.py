r"""GGUF, the format of llama.cpp: trained integers and scales, bit for bit.

    from exporters import gguf
    from lrqat.checkpoint import Checkpoint

    plan = gguf.plan(Checkpoint.open("fused"), gguf.Options())
    print("\n".join(plan.summary()))
    gguf.write(plan, "model-q4_0.gguf")

Needs numpy and the `gguf` package, and no torch.
"""

from exporters.gguf.header import GgufFileError
from exporters.gguf.options import Options
from exporters.gguf.planning import default_name, plan
from exporters.gguf.plans import Plan, PlannedTensor
from exporters.gguf.reader import TensorCheck, check_tensors, rounded_tensors, verify
from exporters.gguf.shards import model_files
from exporters.gguf.upstream import twin_options
from exporters.gguf.writer import Report, write

__all__ = [
    "GgufFileError",
    "Options",
    "Plan",
    "PlannedTensor",
    "Report",
    "TensorCheck",
    "check_tensors",
    "default_name",
    "model_files",
    "plan",
    "rounded_tensors",
    "twin_options",
    "verify",
    "write",
]
