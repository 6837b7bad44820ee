"""Running the model builder, in a process of its own: it prints, and keeps what it loaded."""

import os
import subprocess
import sys
from pathlib import Path

from exporters.onnx_genai.parts import EMBEDDING
from exporters.onnx_genai.planning import Plan
from lrqat.errors import ExportRefusedError
from lrqat.optional_libraries import refuse_missing

_BUILDER = "onnxruntime_genai.models.builder"
# Left alone, the builder rounds an unquantized head to 4 bits, and a tied embedding too.
_UNQUANTIZED = ("/lm_head/MatMul", "/model/embed_tokens/Gather")


def build(plan: Plan, source: Path, target: Path, cache: Path) -> None:
    """Let onnxruntime-genai's builder make `target` of the Olive checkpoint in `source`.

    Args:
        plan: the export.
        source: from `exporters.onnx_genai.olive.write_olive`.
        target: folder to write.
        cache: folder for what it keeps between runs.

    Raises:
        RuntimeUnavailableError: onnxruntime-genai is not installed.
        ExportRefusedError: the builder failed; its last words are in the message.
    """
    refuse_missing("onnxruntime_genai", "lrqat[onnx]")
    options = [f"accuracy_level={plan.options.matmul_accuracy_level}"]
    if not any(part.name == EMBEDDING for part in plan.tensors):
        options.append(f"nodes_to_exclude={','.join(_UNQUANTIZED)}")
    folders = ["-i", str(source), "-o", str(target), "-c", str(cache)]
    command = [sys.executable, "-m", _BUILDER, *folders, "-p", "int4", "-e", "cpu"]
    command += ["--extra_options", *options]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=offline, check=False)
    if ran.returncode:
        lines = ran.stderr.strip().splitlines() or ["no message"]
        raise ExportRefusedError(f"onnxruntime-genai's model builder failed: {lines[-1]}")
