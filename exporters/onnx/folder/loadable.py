"""The last checks before a folder gets its name: the file is valid ONNX, and ONNX Runtime takes it.

The checker reads the graph alone. ONNX Runtime is asked where it is installed; its session is made
without graph optimisation, so that weights stay mapped in the file. Both take milliseconds and no
memory, whatever the size of the model.
"""

import re
from pathlib import Path

import onnx

from exporters.onnx.folder.model_file import MODEL
from lrqat.errors import OutputError, first_line

_OLDEST = (1, 26)  # of ONNX Runtime, that runs everything which is written here


def refuse_invalid(folder: Path, target: Path) -> None:
    """Raise OutputError if `folder`/model.onnx is not valid by onnx's own checker.

    Args:
        folder: where the files lie now.
        target: where they were to go, for the message.
    """
    try:
        onnx.checker.check_model(str(folder / MODEL))  # by path: a protobuf ends at 2 GB
    except onnx.checker.ValidationError as error:
        reason = first_line(error).replace(str(folder), str(target))
        raise OutputError(
            f"{target} was not written: it is not valid ONNX ({reason}); report the architecture"
        ) from None


def refuse_unloadable(folder: Path, target: Path) -> None:
    """Raise OutputError if the installed ONNX Runtime refuses `folder`/model.onnx.

    Args:
        folder: where the files lie now.
        target: where they were to go, for the message.
    """
    try:
        import onnxruntime
    except ImportError:
        return  # the file has been compared with the checkpoint; a runtime is not needed to write
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Prepacking would copy every floating matrix into memory.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(
            str(folder / MODEL), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors share no base class
        reason = first_line(error).replace(str(folder), str(target))
        raise OutputError(
            f"{target} was not written: ONNX Runtime {onnxruntime.__version__} does not load it "
            f"({reason}); {remedy(onnxruntime.__version__)}"
        ) from None


def remedy(installed: str) -> str:
    """What to do about a file that the installed ONNX Runtime does not load."""
    version = tuple(int(part) for part in re.findall(r"\d+", installed)[:2])
    if version < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        return f"install onnxruntime {oldest} or newer, or choose a lower --opset"
    return "it has no kernel for what this architecture computes; report it, or export to GGUF"
