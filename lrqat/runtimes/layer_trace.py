"""At which layer a runtime's activations first leave PyTorch's.

L1 says that a graph is wrong, this says where. The hidden states after every layer are compared
with those of the fake-quant reference on the same tokens, and of each two numbers are reported:

    largest    max |difference|
    relative   the largest over tokens of ||difference|| / ||reference||, the norms over the width

A token has its own norm, since some, mostly the first, have activations a thousand times those of
the others. What a layer computes wrongly stays in the residual stream, so all layers behind a wrong
one differ. The first to leave is the one whose relative difference is

    above the bound, and above ten times the largest of the places before it.

The second part leaves room for differences that grow from layer to layer. The bound says what the
order of summation explains. In float32 it is 256 eps = 3e-5: on intact files of twelve
architectures with two to eight layers, 256 positions at most, the largest was 37 eps in llama.cpp
and 17 in ONNX Runtime. Where something is computed in half precision (a graph in float16,
llama.cpp's GELU) it is 8 of that type's eps, 8e-3; the largest was 1.1. A fault that changes less
than that is not seen.

Where the runtime itself rounds activations, as llama.cpp and ONNX Runtime at level 4 do in the real
file, no bound is known beforehand: the table is all there is, and no layer is named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import UserError
from lrqat.evaluation.text import encode
from lrqat.models import hub
from lrqat.models.hidden_states import HiddenStates
from lrqat.models.reference import load_reference
from lrqat.runtimes.layer_sources import Case, source_of

FLOAT32_BOUND = 256 * float(np.finfo(np.float32).eps)
HALF_BOUND = 8 * float(np.finfo(np.float16).eps)
_GROWTH = 10
# As many as L1 looks at: llama.cpp's rotary angles drift with the position.
POSITIONS = 256


@dataclass(frozen=True)
class Difference:
    """How far a runtime is from the reference at one place.

    Attributes:
        place: "embedding", "layer N" (what leaves it) or "final norm".
        largest: max |difference|.
        relative: of norms over the width, of the worst token.
    """

    place: str
    largest: float
    relative: float


@dataclass(frozen=True)
class LayerTrace:
    """The differences of one file, in the order of computation.

    Attributes:
        file: its path as given.
        runtime: what ran it.
        float32: whether it ran as in L1, in float32 and with nothing rounded.
        differences: of the places that the runtime shows; none if it shows nothing.
        bound: of the relative difference; None where the runtime rounds activations itself.
    """

    file: str
    runtime: str
    float32: bool
    differences: tuple[Difference, ...]
    bound: float | None

    @property
    def first(self) -> str | None:
        """The first place that leaves the reference; None if none does, or there is no bound."""
        if self.bound is None:
            return None
        before = 0.0
        for found in self.differences:
            if not found.relative <= max(self.bound, _GROWTH * before):  # NaN leaves too
                return found.place
            before = max(before, found.relative)
        return None

    @property
    def verdict(self) -> str:
        """What follows, in one line."""
        if not self.differences:
            return f"{self.runtime} shows no hidden states of this graph"
        if self.bound is None:
            return f"{self.runtime} rounds activations in this file: no layer can be named"
        largest = max(found.relative for found in self.differences)
        grown = largest > self.bound and self.first is None
        where = self.first or ("none by a jump, they grow past the bound" if grown else "none")
        return f"first to leave PyTorch: {where} (bound {self.bound:.1e}, largest {largest:.1e})"

    def to_json(self) -> dict[str, Any]:
        """The trace for machines; a difference that is not finite is null, as JSON has none."""
        places = [
            {k: None if v in (np.inf, -np.inf) or v != v else v for k, v in asdict(found).items()}
            for found in self.differences
        ]
        said = {"file": self.file, "runtime": self.runtime, "float32": self.float32}
        return said | {"bound": self.bound, "first": self.first, "layers": places}


def trace_layers(
    checkpoint_path: str | Path,
    files: Sequence[str],
    text: str,
    *,
    float32: bool = True,
    converter: str | None = None,
) -> list[LayerTrace]:
    """Compare hidden states after every layer of exported files with the reference's.

    Args:
        checkpoint_path: folder of the fused checkpoint.
        files: .gguf files and ONNX folders.
        text: its first 256 tokens are run.
        float32: run what L1 runs, in float32 and with nothing rounded; else the file as it is.
        converter: llama.cpp's source tree, for files that its own converter laid out.

    Returns:
        One trace per file, in order.

    Raises:
        UserError: a file of an unknown format, no runtime for it, or one of another model.
    """
    sources = [source_of(Path(file)) for file in files]
    checkpoint = Checkpoint.open(checkpoint_path)
    ids = encode(hub.load_tokenizer(checkpoint.path), text)
    tokens = np.array(ids[:POSITIONS], np.int64)
    model = load_reference(checkpoint)
    traces = []
    for file, source in zip(files, sources, strict=True):
        states = source.run(Case(Path(file), checkpoint, model, tokens, float32, converter))
        bounds = {"float32": FLOAT32_BOUND, "float16": HALF_BOUND}
        bound = bounds[states.computes_in] if states.computes_in else None
        found = compare_states(states.reference, states.runtime)
        traces.append(LayerTrace(file, source.runtime, float32, found, bound))
    return traces


def compare_states(
    reference: Mapping[str, NDArray[np.float32]], runtime: HiddenStates
) -> tuple[Difference, ...]:
    """The differences of the places that both have, in the reference's order.

    Raises:
        UserError: they have other shapes.
    """
    return tuple(
        _difference(place, expected, runtime[place])
        for place, expected in reference.items()
        if place in runtime
    )


def _difference(
    place: str, expected: NDArray[np.float32], found: NDArray[np.float32]
) -> Difference:
    if expected.shape != found.shape:
        raise UserError(
            f"the {place} of the file has the shape {found.shape} and the checkpoint's "
            f"{expected.shape}: it is another model's; give a file that this checkpoint was "
            "exported to"
        )
    delta = found.astype(np.float64) - expected
    norms = np.linalg.norm(expected.astype(np.float64), axis=1)
    changed = np.linalg.norm(delta, axis=1)
    # A token of zeros (a padding embedding) may stay zero.
    relative = np.divide(changed, norms, out=np.full_like(norms, np.inf), where=norms > 0)
    relative[(norms == 0) & (changed == 0)] = 0
    return Difference(place, float(np.abs(delta).max()), float(relative.max()))
