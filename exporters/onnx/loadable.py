"""The last check before a folder gets its name: ONNX Runtime, where it is installed, accepts it.

The session is made without graph optimisation, so weights stay mapped in the file: the check costs
milliseconds and no memory, whatever the size of the model.
"""

from pathlib import Path

from exporters.onnx.verify import MODEL
from lrqat.errors import OutputError


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
        reason = str(error).strip().splitlines()[0].replace(str(folder), str(target))
        raise OutputError(
            f"{target} was not written: ONNX Runtime {onnxruntime.__version__} does not load it "
            f"({reason}); install onnxruntime 1.26 or newer, or choose a lower --opset"
        ) from None
