"""How each kind of exported file is proved, and the bounds with their reasons.

L2's tolerance depends on what the runtime does to activations, and this is the one place that says
so. ONNX Runtime at accuracy level 1 computes in float32: the perplexities agree to 1e-6, the noise
of summation order. llama.cpp rounds activations to 8 bits (blocks of 32, fp16 scale) inside every
quantised matrix product, on purpose and for speed: its file cannot agree with a float32 reference
to better than that rounding, which by itself costs a KL of a few 1e-4 to 1e-3. So there the bounds
are 0.5 % of perplexity, three standard errors of the paired difference, and a KL of 2e-3; and L1,
which runs the same graph without that rounding, shows that nothing else is in the difference (but
for GELU, which it takes from a table of half-precision values: in L1 the reference does too, and
the bound is 1e-3; `lrqat.runtimes.llama_cpp.gelu` says why).

A model that was trained with rounded activations or a rounded cache rounds them in PyTorch and in
ONNX Runtime alike, but sums that differ in the last bit fall on either side of a rounding boundary
now and then, and differ by a step from there on. L2 allows 1e-3 of perplexity and a KL of 1e-3 for
that. L1 leaves nothing to it: there both sides run without any rounding, within the bound of all
models, and each rounding is compared by itself, bit for bit
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
from lrqat.errors import UserError
from lrqat.evaluation.perplexity import LogitsFunction
from lrqat.runtimes.llama_cpp.gelu import GELU_BOUND, with_table_gelu
from lrqat.runtimes.llama_cpp.stored_values import as_stored
from lrqat.runtimes.tolerance import Tolerance

L1_BOUND = 1e-4


def _no_roundings(path: Path, checkpoint: Checkpoint, tokens: NDArray[np.int64]) -> dict[str, int]:
    return {}


@dataclass(frozen=True)
class Prover:
    """How one kind of file is proved.

    Attributes:
        verify: (file, checkpoint) -> mismatching elements by tensor (L0).
        twin: (file, checkpoint, context, converter) -> logits of the F32 twin (L1).
        as_runtime: model -> context in which it computes what the twin does; gives the bound of L1.
        as_stored: (model, file, checkpoint) -> context in which its floating tensors are what the
            file's types round them to, where the export was asked to.
        tolerance: of L2.
        rounded: of L2 where activations or the cache were rounded in training; None: as ever.
        roundings: (file, checkpoint, tokens) -> values that the graph rounds otherwise than
            PyTorch, by layer; nothing where the graph is not in the file.
        at_level: (file, level) -> logits at an accuracy level; None: the runtime has none.
    """

    verify: Callable[[Path, Checkpoint], dict[str, int]]
    twin: Callable[[Path, Checkpoint, int, str | None], AbstractContextManager[LogitsFunction]]
    as_runtime: Callable[[Any], AbstractContextManager[float]]
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
def _gguf_twin(
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
def _onnx_twin(
    path: Path, checkpoint: Checkpoint, context: int, converter: str | None
) -> Iterator[LogitsFunction]:
    """The same folder with ONNX Runtime's quantised kernels off, and nothing rounded."""
    from lrqat.runtimes.onnx_runtime.roundings import unrounded_twin

    with unrounded_twin(path, checkpoint) as session:
        yield session.logits


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


def _verify_gguf(path: Path, checkpoint: Checkpoint) -> dict[str, int]:
    from exporters import gguf

    return gguf.verify(path, checkpoint)


def _verify_onnx(path: Path, checkpoint: Checkpoint) -> dict[str, int]:
    from exporters import onnx

    return onnx.verify(path, checkpoint)


_PROVERS: tuple[tuple[Callable[[Path], bool], Prover], ...] = (
    (
        lambda path: path.suffix == ".gguf" and path.is_file(),
        Prover(
            _verify_gguf,
            _gguf_twin,
            _as_llama_cpp,
            as_stored,
            Tolerance(5e-3, standard_errors=3.0, kl=2e-3),
        ),
    ),
    (
        lambda path: (path / "model.onnx").is_file(),
        Prover(
            _verify_onnx,
            _onnx_twin,
            _without_rounding,
            lambda model, path, checkpoint: nullcontext(),
            Tolerance(1e-6, standard_errors=None, kl=1e-6),
            rounded=Tolerance(1e-3, standard_errors=None, kl=1e-3),
            at_level=_at_level,
            roundings=_differing_roundings,
        ),
    ),
)


def prover_of(path: Path) -> Prover:
    """How the file `path` is proved; UserError where nothing can prove it."""
    for recognises, prover in _PROVERS:
        if recognises(path):
            return prover
    raise UserError(
        f"{path} is neither a .gguf file nor an ONNX folder; export it with `lrqat export`"
    )
