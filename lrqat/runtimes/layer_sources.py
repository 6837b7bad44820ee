"""Where the hidden states of an exported file come from: its runtime's, and the reference's.

`SOURCES` has a row for each format, by its name.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.format import format_of
from lrqat.checkpoint.reader import Checkpoint
from lrqat.models.hidden_states import HiddenStates, anatomy, torch_hidden_states

Precision: TypeAlias = Literal["float32", "float16"]
_LEVEL, _ROUNDS = "accuracy_level", 4  # ONNX Runtime's of quantized products


@dataclass(frozen=True)
class Case:
    """What is to be run.

    Attributes:
        path: the exported file.
        checkpoint: what it was exported from.
        model: the reference of that.
        tokens: int64 (n,).
        float32: as L1 runs it, in float32 and with nothing rounded; else the file as it is.
        converter: llama.cpp's source tree, or None.
    """

    path: Path
    checkpoint: Checkpoint
    model: Any
    tokens: NDArray[np.int64]
    float32: bool
    converter: str | None


@dataclass(frozen=True)
class States:
    """Hidden states on both sides.

    Attributes:
        reference: PyTorch's, computed as the runtime computes.
        runtime: the runtime's; none where it shows none.
        computes_in: the coarsest type that the runtime computes in; None where it rounds
            activations beyond that.
    """

    reference: HiddenStates
    runtime: HiddenStates
    computes_in: Precision | None


@dataclass(frozen=True)
class Source:
    """How a format's hidden states are had.

    Attributes:
        runtime: what runs it, for people and for the JSON.
        run: computes both sides.
    """

    runtime: str
    run: Callable[[Case], States]


def _llama_cpp(case: Case) -> States:
    from lrqat.runtimes.llama_cpp.gelu import with_table_gelu
    from lrqat.runtimes.llama_cpp.hidden_states import hidden_states
    from lrqat.runtimes.llama_cpp.stored_values import as_stored
    from lrqat.runtimes.onnx_runtime.roundings import without_rounding

    stored = nullcontext() if case.float32 else as_stored(case.model, case.path, case.checkpoint)
    with stored, without_rounding(case.model), with_table_gelu(case.model) as gelus:
        reference = torch_hidden_states(case.model, case.tokens)
    with _gguf_file(case) as file:
        found = hidden_states(file, case.tokens)
        exact = _all_float32(file)
    return States(reference, found, ("float16" if gelus else "float32") if exact else None)


@contextmanager
def _gguf_file(case: Case) -> Iterator[Path]:
    """The file, or a second export of the checkpoint in which every tensor is F32."""
    from exporters import gguf

    if not case.float32:
        yield case.path
        return
    with tempfile.TemporaryDirectory(prefix="lrqat-twin-") as folder:
        twin = Path(folder) / "twin.gguf"
        options = gguf.twin_options(case.path, case.converter)
        gguf.write(gguf.plan(case.checkpoint, options), twin)
        yield twin


def _all_float32(path: Path) -> bool:
    """Whether llama.cpp multiplies in float32: it rounds activations to the type of the weights."""
    from exporters.gguf.file.shards import read_model

    tensors = read_model(path, unknown_types=True).tensors.values()
    return all(info.type_name == "F32" for info in tensors)


def _onnx_runtime(case: Case) -> States:
    """A folder in QDQ; in float32 without quantized kernels, and without roundings in the graph."""
    from exporters.onnx.folder.model_file import read_model
    from exporters.onnx.options import LEVEL_ENTRY
    from exporters.onnx.verification import exported_options
    from lrqat.runtimes.onnx_runtime.roundings import unrounded_graph
    from lrqat.runtimes.onnx_runtime.session import session_entries

    graph = read_model(case.path)
    halves = exported_options(graph).resolved().float_dtype == ir.DataType.FLOAT16
    rounds = bool(case.checkpoint.manifest.get("activations"))
    if case.float32 and rounds:
        graph = ir.from_proto(
            onnx.ModelProto.FromString(unrounded_graph(case.path, case.checkpoint))
        )
    exact = case.float32 or not (rounds or int(session_entries(case.path)[LEVEL_ENTRY]) == _ROUNDS)
    return _in_onnx_runtime(case, graph, ("float16" if halves else "float32") if exact else None)


def _genai(case: Case) -> States:
    """The compact form, whose kernels are nodes that name their level; in float32 it is 1."""
    from exporters.onnx.folder.model_file import read_model

    graph = read_model(case.path)
    products = [node for node in graph.graph if _LEVEL in node.attributes]
    exact = case.float32 or all(node.attributes.get_int(_LEVEL, 0) != _ROUNDS for node in products)
    for node in products if case.float32 else ():
        node.attributes[_LEVEL] = ir.AttrInt64(_LEVEL, 1)
    return _in_onnx_runtime(case, graph, "float32" if exact else None)


def _in_onnx_runtime(case: Case, graph: ir.Model, computes_in: Precision | None) -> States:
    from lrqat.runtimes.onnx_runtime.hidden_states import hidden_states
    from lrqat.runtimes.onnx_runtime.roundings import without_rounding

    with without_rounding(case.model) if case.float32 else nullcontext():
        reference = torch_hidden_states(case.model, case.tokens)
    found = hidden_states(
        case.path, graph, case.tokens, anatomy(case.model), without_kernels=case.float32
    )
    return States(reference, found, computes_in)


SOURCES = {
    "gguf": Source("llama.cpp", _llama_cpp),
    "onnx": Source("ONNX Runtime", _onnx_runtime),
    "onnx-genai": Source("ONNX Runtime", _genai),
}


def source_of(path: Path) -> Source:
    """The source for the file `path`; UserError where there is none."""
    return SOURCES[format_of(path)]
