"""How a file of each format is proved, and the bounds with their reasons.

L2's tolerance depends on what the runtime does to activations, and this is the one place that says
so. ONNX Runtime at accuracy level 1 computes in float32: the perplexities agree to 1e-6, the noise
of summation order. llama.cpp rounds activations to 8 bits (blocks of 32, fp16 scale) inside every
quantised matrix product, on purpose and for speed: its file cannot agree with a float32 reference
to better than that rounding, which by itself costs a KL of a few 1e-4 to 1e-3. So there the bounds
are 0.5 % of perplexity, three standard errors of the paired difference, and a KL of 2e-3; and L1,
which runs the same graph without that rounding, shows that nothing else is in the difference (but
for GELU, which it takes from a table of half-precision values: in L1 the reference does too, and
the bound is 1e-3; `lrqat.runtimes.llama_cpp.gelu` says why).

In the compact form (`exporters.onnx_genai`) the quantized kernels are nodes of the graph, which
cannot be switched off. Its L1 is the same graph with those nodes at accuracy level 1, where they
multiply in float32: L0 has compared the weights, and what is left to be wrong is the graph. L2 is
the file as it is, at the level that it was exported with.

A model that was trained with fake-quantized activations or a quantized cache rounds them in PyTorch
and in ONNX Runtime alike, but sums that differ in the last bit fall on either side of a rounding
boundary now and then, and differ by a step from there on. L2 allows 1e-3 of perplexity and a KL of
1e-3 for that. L1 leaves nothing to it: there both sides run without any rounding, within the bound
of all models, and each rounding is compared by itself, bit for bit
(`lrqat.runtimes.onnx_runtime.roundings`).
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
from lrqat.evaluation.perplexity import Comparison, LogitsFunction
from lrqat.runtimes.llama_cpp.gelu import GELU_BOUND, with_table_gelu
from lrqat.runtimes.llama_cpp.stored_values import as_stored

L1_BOUND = 1e-4


@dataclass(frozen=True)
class Tolerance:
    """Bounds of L2; None where a runtime needs no such allowance.

    Attributes:
        relative: |relative difference of perplexity|.
        standard_errors: of the paired difference of log-likelihoods.
        kl: mean KL, nats.
    """

    relative: float
    standard_errors: float | None
    kl: float

    def holds(self, comparison: Comparison) -> bool:
        """Whether a comparison keeps within all bounds."""
        return (
            abs(comparison.relative_difference) <= self.relative
            and comparison.kl <= self.kl
            and (self.standard_errors is None or comparison.standard_errors <= self.standard_errors)
        )


def _no_roundings(path: Path, checkpoint: Checkpoint, tokens: NDArray[np.int64]) -> dict[str, int]:
    return {}


@dataclass(frozen=True)
class Prover:
    """How a file of one format is proved in its runtime; L0 is the format's own `verify`.

    Attributes:
        graph: (file, checkpoint, context, converter) -> logits of its graph in float32, with
            nothing rounded (L1).
        as_graph: model -> context in which it computes what `graph` does; gives the bound of L1.
        as_stored: (model, file, checkpoint) -> context in which its unquantized tensors are what
            the file's types round them to, where the export was asked to.
        tolerance: of L2.
        rounded: of L2 where activations or the cache were fake-quantized in training; None: the
            same.
        roundings: (file, checkpoint, tokens) -> values that the graph rounds otherwise than
            PyTorch, by layer; nothing where the graph is not in the file.
        at_level: (file, level) -> logits at an accuracy level; None: the runtime has none.
    """

    graph: Callable[[Path, Checkpoint, int, str | None], AbstractContextManager[LogitsFunction]]
    as_graph: Callable[[Any], AbstractContextManager[float]]
    as_stored: Callable[[Any, Path, Checkpoint], AbstractContextManager[None]]
    tolerance: Tolerance
    rounded: Tolerance | None = None
    roundings: Callable[[Path, Checkpoint, NDArray[np.int64]], dict[str, int]] = _no_roundings
    at_level: Callable[[Path, int], AbstractContextManager[LogitsFunction]] | None = None

    def bounds(self, checkpoint: Checkpoint) -> Tolerance:
        """The bounds of L2 for `checkpoint`."""
        rounds = bool(checkpoint.manifest.get("activations"))
        return self.rounded if rounds and self.rounded else self.tolerance


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
def _as_llama_cpp(model: Any) -> Iterator[float]:
    with with_table_gelu(model) as gelus:
        yield GELU_BOUND if gelus else L1_BOUND


@contextmanager
def _without_kernels(
    path: Path, checkpoint: Checkpoint, context: int, converter: str | None
) -> Iterator[LogitsFunction]:
    """The same folder with ONNX Runtime's quantized kernels off, and nothing rounded."""
    from lrqat.runtimes.onnx_runtime.roundings import unrounded_twin

    with unrounded_twin(path, checkpoint) as session:
        yield session.logits


@contextmanager
def _in_float32(
    path: Path, checkpoint: Checkpoint, context: int, converter: str | None
) -> Iterator[LogitsFunction]:
    """The same folder with the kernels at level 1: they are the graph's own, but round nothing."""
    with _compact_at_level(path, 1) as logits:
        yield logits


@contextmanager
def _without_rounding(model: Any) -> Iterator[float]:
    from lrqat.runtimes.onnx_runtime.roundings import without_rounding

    with without_rounding(model):
        yield L1_BOUND


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


_FLOAT32 = Tolerance(1e-6, standard_errors=None, kl=1e-6)

# By the names of `exporters.format.FORMATS`.
PROVERS = {
    "gguf": Prover(
        _f32_twin,
        _as_llama_cpp,
        as_stored,
        Tolerance(5e-3, standard_errors=3.0, kl=2e-3),
    ),
    "onnx": Prover(
        _without_kernels,
        _without_rounding,
        _as_it_is,
        _FLOAT32,
        rounded=Tolerance(1e-3, standard_errors=None, kl=1e-3),
        roundings=_differing_roundings,
        at_level=_at_level,
    ),
    "onnx-genai": Prover(
        _in_float32, _without_rounding, _as_it_is, _FLOAT32, at_level=_compact_at_level
    ),
}
