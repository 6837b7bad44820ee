"""OpenVINO: an exported folder as a function from inputs to outputs.

Two of its settings keep what was trained: by default it rounds activations to 8 bits in groups
(`DYNAMIC_QUANTIZATION_GROUP_SIZE`), and computes in bfloat16 where the processor can
(`INFERENCE_PRECISION_HINT`).
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrqat import optional_libraries
from lrqat.errors import UserError

EXACT = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "INFERENCE_PRECISION_HINT": "f32"}
Arrays = dict[str, NDArray[Any]]


class OpenVino:
    """A compiled model. Use `OpenVino.open`.

    Attributes:
        compiled: the openvino.CompiledModel.
    """

    def __init__(self, compiled: Any) -> None:
        self.compiled: Any = compiled

    @classmethod
    def open(cls, folder: str | Path, settings: dict[str, str] = EXACT) -> "OpenVino":
        """Compile `folder`/model.onnx for the CPU.

        Args:
            folder: from the ONNX exporter.
            settings: properties of the device; an empty one leaves OpenVINO's defaults.

        Raises:
            RuntimeUnavailableError: openvino is not installed.
            UserError: OpenVINO cannot read the model.
        """
        openvino = optional_libraries.load("openvino", "openvino")
        path = Path(folder) / "model.onnx"
        try:
            return cls(openvino.Core().compile_model(str(path), "CPU", settings))
        except RuntimeError as error:
            raise UserError(f"OpenVINO cannot read {path}: {error}") from None

    def run(self, feeds: Arrays) -> Arrays:
        """All outputs by name, of all inputs by name."""
        results = self.compiled(feeds)
        return {output.get_any_name(): results[output] for output in self.compiled.outputs}

    def logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits (n, vocabulary) of tokens (n,), with an empty cache."""
        count = len(tokens)
        feeds: Arrays = {
            "input_ids": np.ascontiguousarray(tokens, np.int64)[None],
            "attention_mask": np.ones((1, count), np.int64),
            "position_ids": np.arange(count, dtype=np.int64)[None],
        }
        return self.run(feeds | self.empty_cache())["logits"][0]

    def empty_cache(self, batch: int = 1) -> Arrays:
        """A cache of no tokens, by input name: (batch, kv_heads, 0, head_dim)."""
        cache: Arrays = {}
        for entry in self.compiled.inputs:
            name = entry.get_any_name()
            if name.startswith("past_key_values."):
                _, heads, _, size = entry.get_partial_shape()
                shape = batch, heads.get_length(), 0, size.get_length()
                cache[name] = np.zeros(shape, entry.get_element_type().to_dtype())
        return cache
