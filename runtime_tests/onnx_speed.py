"""Speed of an exported folder in ONNX Runtime, next to the same weights in other forms.

    qdq        the folder of the ONNX exporter, whose products ONNX Runtime fuses
    builder    the compact form: the same integers in the graph of onnxruntime-genai's own builder
    float32    the folder with its weights dequantised once, when it is loaded, and multiplied so

All run as plain sessions in one process and take turns (`lrqat.turns`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lrqat.checkpoint import Checkpoint
from lrqat.turns import Progress, Times, time_in_turns
from runtime_tests.onnx_runtime import OnnxRuntime

BASELINE = "qdq"


def write_forms(checkpoint: Path, folder: Path) -> dict[str, OnnxRuntime]:
    """Export `checkpoint` in both forms into `folder`, and open every contender.

    Raises:
        ExportRefusedError: a form cannot hold it exactly.
        RuntimeUnavailableError: a runtime is not installed.
    """
    from exporters import onnx, onnx_genai

    opened = Checkpoint.open(checkpoint)
    onnx.write(onnx.plan(opened), folder / "qdq")
    onnx_genai.write(onnx_genai.plan(opened), folder / "builder")
    return {
        BASELINE: OnnxRuntime.open(folder / "qdq"),
        "builder": OnnxRuntime.open(folder / "builder"),
        "float32": OnnxRuntime.open(folder / "qdq", twin=True),
    }


def measure(
    contenders: dict[str, OnnxRuntime],
    *,
    tokens: int,
    past: int,
    rounds: int,
    progress: Progress = lambda items: items,
) -> dict[str, Times]:
    """Time one call with `tokens` new tokens after `past` others, in turns.

    Args:
        contenders: from `write_forms`.
        tokens: of a call: 1 is decoding, many are a prompt.
        past: tokens already in the cache, of zeros.
        rounds: counted rounds; one more goes before them.
        progress: wraps the iterable of rounds.

    Raises:
        UserError: fewer than two rounds.
    """
    calls = {name: _call(opened, tokens, past) for name, opened in contenders.items()}
    return time_in_turns(calls, BASELINE, rounds=rounds, progress=progress)


def _call(opened: OnnxRuntime, tokens: int, past: int) -> Callable[[], Any]:
    total = past + tokens
    feeds: dict[str, Any] = {
        "input_ids": np.arange(tokens, dtype=np.int64)[None] % 256,
        "attention_mask": np.ones((1, total), np.int64),
        "position_ids": np.arange(past, total, dtype=np.int64)[None],
    }
    for entry in opened.session.get_inputs():
        if entry.name.startswith("past_key_values."):
            shape = 1, entry.shape[1], past, entry.shape[3]
            feeds[entry.name] = np.zeros(shape, np.float32)
    taken = {entry.name: feeds[entry.name] for entry in opened.session.get_inputs()}
    return lambda: opened.session.run(None, taken)
