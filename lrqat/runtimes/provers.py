"""How a file of each format is proved: its graph in float32, and what its runtime rounds.

GGUF. llama.cpp rounds activations to 8 bits (blocks of 32 or 256) inside every quantized product,
on purpose and for speed: L2 expects what a simulation of that says. L1 runs an F32 twin, the same
graph without that rounding, and so shows that nothing else is in the difference. (GELU llama.cpp
takes from a table of half-precision values; the reference then does too:
`lrqat.runtimes.llama_cpp.gelu`.)

ONNX. At accuracy level 1 everything is float32, in L1 with the quantized kernels off. In the
compact form (`exporters.onnx_genai`) these kernels are nodes of the graph, which cannot be switched
off: its L1 is the same graph with those nodes at level 1, where they multiply in float32. L0 has
compared the weights, and what is left to be wrong is the graph. L2 is the file as it is, at the
level that it was exported with.

A model that was trained with fake-quantized activations or a quantized cache rounds them in PyTorch
and in ONNX Runtime alike: that is in L2's simulation. L1 leaves nothing to it: there both sides run
without any rounding, and each rounding is compared by itself, bit for bit
(`lrqat.runtimes.onnx_runtime.roundings`).

How much may differ is measured on the model: `lrqat.runtimes.bounds`.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrqat.checkpoint.reader import Checkpoint
from lrqat.evaluation.perplexity import LogitsFunction
from lrqat.runtimes.llama_cpp.gelu import with_table_gelu
from lrqat.runtimes.llama_cpp.products import rounding_activations
from lrqat.runtimes.llama_cpp.stored_values import as_stored


def _no_roundings(path: Path, checkpoint: Checkpoint, tokens: NDArray[np.int64]) -> dict[str, int]:
    return {}


@dataclass(frozen=True)
class Prover:
    """How a file of one format is proved in its runtime; L0 is the format's own `verify`.

    Attributes:
        graph: (file, checkpoint, context, converter) -> logits of its graph in float32, with
            nothing rounded (L1).
        as_graph: model -> context in which it computes what `graph` does.
        as_stored: (model, file, checkpoint) -> context in which its unquantized tensors are what
            the file's types round them to, where the export was asked to.
        as_runtime: (model, file, checkpoint) -> context in which the model rounds what the runtime
            rounds; gives whether that is anything, training's own roundings included.
        roundings: (file, checkpoint, tokens) -> values that the graph rounds otherwise than
            PyTorch, by layer; nothing where the graph is not in the file.
        at_level: (file, level) -> logits at an accuracy level; None: the runtime has none.
    """

    graph: Callable[[Path, Checkpoint, int, str | None], AbstractContextManager[LogitsFunction]]
    as_graph: Callable[[Any], AbstractContextManager[Any]]
    as_stored: Callable[[Any, Path, Checkpoint], AbstractContextManager[None]]
    as_runtime: Callable[[Any, Path, Checkpoint], AbstractContextManager[bool]]
    roundings: Callable[[Path, Checkpoint, NDArray[np.int64]], dict[str, int]] = _no_roundings
    at_level: Callable[[Path, int], AbstractContextManager[LogitsFunction]] | None = None


@contextmanager
def _f32_twin(
    path: Path, checkpoint: Checkpoint, context: int, converter: str | None
) -> Iterator[LogitsFunction]:
    """A second export of the checkpoint in which every tensor is F32, run by llama.cpp."""
    from exporters import gguf
    from lrqat.runtimes.llama_cpp.runtime import LlamaCpp

    with tempfile.TemporaryDirectory(prefix="lrqat-twin-") as folder:
        twin = Path(folder) / "twin.gguf"
        gguf.write(gguf.plan(checkpoint, gguf.twin_options(path, converter)), twin)
        with LlamaCpp.open(twin, n_ctx=context) as llama:
            yield llama.logits


@contextmanager
def _as_llama_cpp(model: Any, path: Path, checkpoint: Checkpoint) -> Iterator[bool]:
    with with_table_gelu(model), rounding_activations(model, path, checkpoint) as rounds:
        yield rounds


@contextmanager
def _without_kernels(
    path: Path, checkpoint: Checkpoint, context: int, converter: str | None
) -> Iterator[LogitsFunction]:
    """The same folder with ONNX Runtime's quantized kernels off, and nothing rounded."""
    from lrqat.runtimes.onnx_runtime.roundings import unrounded

    with unrounded(path, checkpoint) as session:
        yield session.logits


@contextmanager
def _in_float32(
    path: Path, checkpoint: Checkpoint, context: int, converter: str | None
) -> Iterator[LogitsFunction]:
    """The same folder with the kernels at level 1: they are the graph's own, but round nothing."""
    with _compact_at_level(path, 1) as logits:
        yield logits


def _without_rounding(model: Any) -> AbstractContextManager[None]:
    from lrqat.runtimes.onnx_runtime.roundings import without_rounding

    return without_rounding(model)


def _differing_roundings(
    path: Path, checkpoint: Checkpoint, tokens: NDArray[np.int64]
) -> dict[str, int]:
    from lrqat.runtimes.onnx_runtime.roundings import differing_roundings

    return differing_roundings(path, checkpoint, tokens)


@contextmanager
def _at_level(path: Path, level: int) -> Iterator[LogitsFunction]:
    from lrqat.runtimes.onnx_runtime.session import OnnxRuntime

    with OnnxRuntime.open(path, accuracy_level=level) as session:
        yield session.logits


@contextmanager
def _compact_at_level(path: Path, level: int) -> Iterator[LogitsFunction]:
    from lrqat.runtimes.onnx_runtime.session import OnnxRuntime, graph_at_level

    with OnnxRuntime.open(path, graph=graph_at_level(path, level)) as session:
        yield session.logits


def _as_it_is(model: Any, path: Path, checkpoint: Checkpoint) -> AbstractContextManager[None]:
    return nullcontext()


def _as_trained(model: Any, path: Path, checkpoint: Checkpoint) -> AbstractContextManager[bool]:
    """ONNX Runtime at level 1 rounds what was fake-quantized in training, and nothing else."""
    return nullcontext(bool(checkpoint.manifest.get("activations")))


# By the names of `exporters.format.FORMATS`.
PROVERS = {
    "gguf": Prover(_f32_twin, with_table_gelu, as_stored, _as_llama_cpp),
    "onnx": Prover(
        _without_kernels,
        _without_rounding,
        _as_it_is,
        _as_trained,
        roundings=_differing_roundings,
        at_level=_at_level,
    ),
    "onnx-genai": Prover(
        _in_float32, _without_rounding, _as_it_is, _as_trained, at_level=_compact_at_level
    ),
}
