"""ONNX Runtime: an exported folder as a function from tokens to logits.

Accuracy level 1 keeps every product in float32. ONNX Runtime's own default, 4, rounds activations
to 8 bits inside quantised products; it is faster, and not what was trained, unless it was.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.onnx.folder.model_file import read_model
from exporters.onnx.options import FUSION_ENTRY, LEVEL_ENTRY, PRECISION_ENTRY, Options
from exporters.onnx.verification import exported_options
from exporters.onnx_genai.products import ACCURACY_LEVEL, MATMUL
from lrqat import optional_libraries
from lrqat.errors import UserError
from lrqat.foreign_files import parse_json
from lrqat.runtimes.onnx_runtime.perplexity import logits_of, zero_cache


class OnnxRuntime:
    """An open session. Use `OnnxRuntime.open`, best in a `with` statement.

    Attributes:
        session: the onnxruntime.InferenceSession.
    """

    def __init__(self, session: Any) -> None:
        self.session: Any = session

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        accuracy_level: int | None = None,
        without_kernels: bool = False,
        threads: int | None = None,
        optimized_path: str | Path | None = None,
        entries: Mapping[str, str] | None = None,
        graph: bytes | None = None,
    ) -> "OnnxRuntime":
        """Load `folder`/model.onnx on the CPU.

        Args:
            folder: from the ONNX exporter.
            accuracy_level: of quantised products; 0 and 1 compute in float32, 4 in int8; None:
                what the file was exported for.
            without_kernels: use no quantized kernels: weights are dequantized once and multiplied
                as float32 (what L1 runs).
            threads: None: every core.
            optimized_path: also save the optimised graph there, to look at.
            entries: more configuration entries of the session.
            graph: a protobuf to run on the folder's data in place of model.onnx.

        Raises:
            RuntimeUnavailableError: onnxruntime is not installed.
            UserError: the model cannot be loaded.
        """
        onnxruntime = optional_libraries.load("onnxruntime", "lrqat[onnx]")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or os.cpu_count() or 1
        options.log_severity_level = 3
        chosen = session_entries(folder)
        chosen |= {} if accuracy_level is None else {LEVEL_ENTRY: str(accuracy_level)}
        chosen |= {"session.disable_quant_qdq": "1", FUSION_ENTRY: "0"} if without_kernels else {}
        for key, value in (chosen | dict(entries or {})).items():
            options.add_session_config_entry(key, value)
        if optimized_path is not None:
            options.optimized_model_filepath = str(optimized_path)
        path = Path(folder) / "model.onnx"
        if graph is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(folder)
            )
        try:
            session = onnxruntime.InferenceSession(
                graph or str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors share no base class
            raise UserError(f"ONNX Runtime cannot load {path}: {error}") from None
        return cls(session)

    def logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits (n, vocabulary) of tokens (n,), with an empty cache."""
        return logits_of(self.session)(tokens)

    def empty_cache(self, batch: int) -> dict[str, NDArray[Any]]:
        """A cache of no tokens, by input name: (batch, kv_heads, 0, width) in the input's type."""
        return zero_cache(self.session, batch)

    def close(self) -> None:
        """Free the session."""
        self.session = None

    def __enter__(self) -> "OnnxRuntime":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def session_entries(folder: str | Path) -> dict[str, str]:
    """What `folder`/model.onnx was exported for; the defaults, level 1, where it does not say."""
    try:
        model = read_model(Path(folder))
        precise = {PRECISION_ENTRY: "1"} if PRECISION_ENTRY in model.metadata_props else {}
        return exported_options(model).resolved().session_entries | precise
    except UserError:
        return Options().resolved().session_entries


def graph_at_level(folder: str | Path, level: int) -> bytes:
    """The folder's model.onnx, in the compact form, with another accuracy level.

    There the level is an attribute of every quantized product, and no entry of the session.
    """
    model = read_model(Path(folder))
    for node in model.graph:
        if node.op_type == MATMUL:
            node.attributes[ACCURACY_LEVEL] = ir.AttrInt64(ACCURACY_LEVEL, level)
    return serialized(model)


def serialized(model: ir.Model) -> bytes:
    """A graph without its data, for a session that is told where that lies."""
    return ir.to_proto(model).SerializeToString()


def provenance(folder: str | Path) -> dict[str, Any]:
    """The `lrqat.*` facts that the file itself carries, numbers as numbers."""
    with OnnxRuntime.open(folder) as opened:
        properties = opened.session.get_modelmeta().custom_metadata_map
    return {key: _plain(value) for key, value in properties.items() if key.startswith("lrqat.")}


def _plain(value: str) -> Any:
    try:
        return parse_json(value.encode())
    except ValueError:
        return value
