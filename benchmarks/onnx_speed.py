"""Speed of an exported folder in ONNX Runtime, next to the same weights in other forms.

    qdq               the folder of the ONNX exporter, whose products ONNX Runtime fuses
    builder           the compact form: the same integers in the graph of GenAI's own builder
    builder in place  the same, its cache written where it is read: no standard operator can
    float32           the folder with its weights dequantised once, when it is loaded

All run as plain sessions in one process and take turns (`benchmarks.timing`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import Progress, Times, time_in_turns
from lrqat.checkpoint.reader import Checkpoint
from lrqat.runtimes.onnx_runtime.perplexity import feeds_of, zero_cache
from lrqat.runtimes.onnx_runtime.session import OnnxRuntime

BASELINE = "qdq"
# Idle threads of a session would otherwise spin into the turn of the next one.
_ENTRIES = {"session.force_spinning_stop": "1"}


@dataclass(frozen=True)
class Contender:
    """A session to time.

    Attributes:
        opened: the session.
        in_place: whether the cache is written where it is read.
    """

    opened: OnnxRuntime
    in_place: bool = False

    def call(self, tokens: int, past: int) -> Callable[[], Any]:
        """A call with `tokens` new tokens after `past` others, whose cache is zeros."""
        session = self.opened.session
        feeds = feeds_of(session, np.arange(tokens) % 256, past)
        if self.in_place:
            return _bound(session, feeds | zero_cache(session, 1, past + tokens))
        return lambda: session.run(None, feeds)


def write_forms(checkpoint: Path, folder: Path, level: int = 1) -> dict[str, Contender]:
    """Export `checkpoint` in both forms into `folder`, and open every contender.

    Args:
        checkpoint: a fused checkpoint.
        folder: where to.
        level: accuracy level of quantised products.

    Raises:
        ExportRefusedError: a form cannot hold it exactly.
        RuntimeUnavailableError: a runtime is not installed.
    """
    from exporters import onnx, onnx_genai

    opened = Checkpoint.open(checkpoint)
    onnx.write(onnx.plan(opened, onnx.Options(accuracy_level=level)), folder / "qdq")
    options = onnx_genai.Options(matmul_accuracy_level=level)
    onnx_genai.write(onnx_genai.plan(opened, options), folder / "builder")
    return open_forms(folder)


def open_forms(folder: Path) -> dict[str, Contender]:
    """Every contender, of a folder that `write_forms` filled."""
    builder = OnnxRuntime.open(folder / "builder", entries=_ENTRIES)
    return {
        BASELINE: Contender(OnnxRuntime.open(folder / "qdq", entries=_ENTRIES)),
        "builder": Contender(builder),
        "builder in place": Contender(builder, in_place=True),
        "float32": Contender(
            OnnxRuntime.open(folder / "qdq", without_kernels=True, entries=_ENTRIES)
        ),
    }


def measure(
    contenders: Mapping[str, Contender],
    *,
    tokens: int,
    past: int,
    rounds: int,
    repeat: int = 1,
    progress: Progress = lambda items: items,
) -> dict[str, Times]:
    """Time a call with `tokens` new tokens after `past` others, in turns.

    Args:
        contenders: from `write_forms`.
        tokens: of a call: 1 is decoding, many are a prompt.
        past: tokens already in the cache.
        rounds: counted rounds; one more goes before them.
        repeat: calls of a turn, whose mean counts. The first finds the processor's caches full of
            another contender's weights, which never happens to who decodes a text.
        progress: wraps the iterable of rounds.

    Raises:
        UserError: fewer than two rounds.
    """
    calls = {
        name: _repeated(contender.call(tokens, past), repeat)
        for name, contender in contenders.items()
    }
    found = time_in_turns(calls, BASELINE, rounds=rounds, progress=progress)
    return {
        name: replace(times, wall=times.wall / repeat, cpu=times.cpu / repeat)
        for name, times in found.items()
    }


def _repeated(call: Callable[[], Any], count: int) -> Callable[[], None]:
    def calls() -> None:
        for _ in range(count):
            call()

    return calls


def _bound(session: Any, feeds: dict[str, Any]) -> Callable[[], Any]:
    """A call whose outputs `present.X` are the memory of its inputs `past_key_values.X`."""
    from onnxruntime import OrtValue

    binding = session.io_binding()
    for name, array in feeds.items():
        value = OrtValue.ortvalue_from_numpy(array)
        binding.bind_ortvalue_input(name, value)
        if name.startswith("past_key_values."):
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
    binding.bind_output("logits")
    return lambda: session.run_with_iobinding(binding)
