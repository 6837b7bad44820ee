"""Qualcomm's NPU (HTP), as its own emulator computes it: an exported folder as a function.

onnxruntime-qnn, on x86, brings a libQnnHtp.so that compiles a graph for the NPU as on a device, and
then computes it on the CPU. The graph has to have fixed shapes, none of them 0.
"""

import collections
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrqat import optional_libraries
from lrqat.errors import UserError
from lrqat.runtimes.onnx_runtime.perplexity import feeds_of
from lrqat.runtimes.onnx_runtime.session import session_entries

_NAME = "QNNExecutionProvider"
# The NPU to compile for. The first session of a process decides, whatever later ones ask for.
_DEVICE = {"htp_arch": "75"}


class Qnn:
    """A compiled model that takes a fixed number of tokens. Use `Qnn.open`.

    Attributes:
        session: the onnxruntime.InferenceSession.
        nodes: by provider, how many nodes of each type it computes.
        graphs: how many pieces the NPU got.
    """

    def __init__(self, session: Any) -> None:
        self.session: Any = session
        self.nodes: dict[str, collections.Counter[str]] = {}
        assigned = session.get_provider_graph_assignment_info()
        for graph in assigned:
            counts = self.nodes.setdefault(graph.ep_name, collections.Counter())
            counts.update(node.op_type for node in graph.get_nodes())
        self.graphs = sum(graph.ep_name == _NAME for graph in assigned)

    @classmethod
    def open(cls, folder: str | Path, tokens: int) -> "Qnn":
        """Compile `folder`/model.onnx for `tokens` tokens after one that is masked.

        Raises:
            RuntimeUnavailableError: onnxruntime-qnn is not installed.
            UserError: the NPU's compiler does not take the model.
        """
        onnxruntime, device, backend = _emulator()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # its warnings are about Windows
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        for key, value in session_entries(folder).items():
            options.add_session_config_entry(key, value)
        sizes = {"batch_size": 1, "past_sequence_length": 1}
        sizes |= {"sequence_length": tokens, "total_sequence_length": tokens + 1}
        for name, size in sizes.items():
            options.add_free_dimension_override_by_name(name, size)
        options.add_provider_for_devices([device], {"backend_path": backend, **_DEVICE})
        path = Path(folder) / "model.onnx"
        try:
            return cls(onnxruntime.InferenceSession(str(path), options))
        except Exception as error:  # of several types of ONNX Runtime's own
            raise UserError(f"QNN cannot compile {path}: {error}") from None

    def logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits (n, vocabulary) of tokens (n,), as many as the model was compiled for."""
        feeds = feeds_of(self.session, tokens, past=1)
        feeds["attention_mask"][0, 0] = 0
        feeds["position_ids"] -= 1
        logits: NDArray[Any] = self.session.run(["logits"], feeds)[0][0]
        return logits.astype(np.float32)


def _emulator() -> tuple[Any, Any, str]:
    """ONNX Runtime, the emulated NPU in it, and the library that emulates it."""
    onnxruntime = optional_libraries.load("onnxruntime", "lrqat[onnx]")
    onnxruntime_qnn = optional_libraries.load("onnxruntime_qnn", "onnxruntime-qnn")
    found = [d for d in onnxruntime.get_ep_devices() if d.ep_name == _NAME]
    if not found:
        library = onnxruntime_qnn.get_library_path()
        onnxruntime.register_execution_provider_library(_NAME, library)
        found = [d for d in onnxruntime.get_ep_devices() if d.ep_name == _NAME]
    return onnxruntime, found[0], onnxruntime_qnn.get_qnn_htp_path()
