r"""GGUF, the format of llama.cpp: trained integers and scales, bit for bit.

    from exporters import gguf
    from lrqat.checkpoint.reader import Checkpoint

    plan = gguf.plan(Checkpoint.open("fused"), gguf.Options())
    print("\n".join(plan.summary()))
    gguf.write(plan, "model-q4_0.gguf")

Needs numpy and the `gguf` package, and no torch.
"""

from typing import TYPE_CHECKING

from exporters.format import Format
from exporters.gguf.as_loaded import activation_types, rounded_tensors
from exporters.gguf.converter.upstream import twin_options
from exporters.gguf.file.header import GgufFileError
from exporters.gguf.file.shards import model_files
from exporters.gguf.headers import file_bytes
from exporters.gguf.inspection import inspect
from exporters.gguf.options import Options
from exporters.gguf.planning import default_name, plan
from exporters.gguf.plans import Plan, PlannedTensor
from exporters.gguf.verification import TensorCheck, check_tensors, verify
from exporters.gguf.writer import Report, write

__all__ = [
    "GgufFileError",
    "Options",
    "Plan",
    "PlannedTensor",
    "Report",
    "TensorCheck",
    "activation_types",
    "check_tensors",
    "default_name",
    "file_bytes",
    "inspect",
    "model_files",
    "plan",
    "rounded_tensors",
    "twin_options",
    "verify",
    "write",
]

if TYPE_CHECKING:  # where mypy sees whether this is a format
    import exporters.gguf as package

    _FORMAT: Format[Options, Plan] = package
