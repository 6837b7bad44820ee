"""Hidden states as ONNX Runtime computes them: values of the graph, made outputs of it.

A file keeps no module names, and what optimisers leave of a norm or an addition differs from one
graph to the next. Two things are sure. Weights begin with the checkpoint's names of layers and
head. And the hidden state that leaves a layer is all that the later layers get of these tokens, so
every path from `input_ids` to `logits` runs through it; through nothing inside attention or MLP, as
the residual stream runs beside them. A node that all paths run through is called a *cut* here (in
graph theory: a dominator), and

    embedding    the last cut before layer 0's first weight
    layer i      the first cut after layer i's last weight
    final norm   the last cut before the output head's weight
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lrqat.models.hidden_states import (
    EMBEDDING,
    FINAL_NORM,
    Anatomy,
    HiddenStates,
    layer_name,
)
from lrqat.runtimes.onnx_runtime.perplexity import feeds_of
from lrqat.runtimes.onnx_runtime.session import OnnxRuntime

# Their results are sizes: nothing of the tokens' values.
_OF_SIZES = ("Shape", "Size")
# ONNX Runtime's norm of a sum gives the sum, the residual stream, as its last result, if wanted.
_SUM_INSIDE = {"SkipSimplifiedLayerNormalization": 3, "SkipLayerNormalization": 3}


def hidden_states(
    folder: str | Path,
    model: ir.Model,
    tokens: NDArray[np.int64],
    parts: Anatomy,
    *,
    without_kernels: bool = False,
) -> HiddenStates:
    """The hidden states of an ONNX folder after each of `tokens` (n,).

    Args:
        folder: where the data of `model` lie.
        model: the folder's graph, as read or with its roundings bypassed; outputs are added to it.
        tokens: a text.
        parts: where layers and head are, by the names of the checkpoint.
        without_kernels: as `OnnxRuntime.open`.

    Returns:
        Those that are values of the graph; none where it has them inside of fused nodes.

    Raises:
        UserError: ONNX Runtime cannot load the graph.
    """
    found = find_hidden_states(model.graph, parts)
    if not found:
        return {}
    outputs = {value.name for value in model.graph.outputs}
    wanted = {value.name: value for value in found.values()}
    model.graph.outputs.extend(value for name, value in wanted.items() if name not in outputs)
    graph = ir.to_proto(model).SerializeToString()
    with OnnxRuntime.open(folder, without_kernels=without_kernels, graph=graph) as opened:
        results = opened.session.run(list(wanted), feeds_of(opened.session, tokens))
    states = dict(zip(wanted, results, strict=True))
    return {name: states[value.name][0].astype(np.float32) for name, value in found.items()}


def find_hidden_states(graph: ir.Graph, parts: Anatomy) -> dict[str, ir.Value]:
    """The values of `graph` that are hidden states, by our names, in the order of computation."""
    stream = _Stream(graph)
    cuts = stream.cuts()
    found: dict[str, ir.Value | None] = {}
    end = -1
    for i in range(parts.count):
        used = stream.uses(f"{parts.layers}.{i}.")
        if not used:
            return {}
        if i == 0:
            before = [cut for cut in cuts if cut < min(used)]
            found[EMBEDDING] = stream.nodes[before[-1]].outputs[0] if before else None
        end = next((cut for cut in cuts if cut > max(used)), len(stream.nodes))
        found[layer_name(i)] = stream.residual(end)
    heads = [use for name in parts.heads for use in stream.uses(f"{name}.") if use > end]
    if heads:  # a tied one is read by the embedding too
        before = [cut for cut in cuts if end <= cut < min(heads)]
        found[FINAL_NORM] = stream.nodes[before[-1]].outputs[0] if before else None
    return {name: value for name, value in found.items() if value is not None}


class _Stream:
    """The nodes between `input_ids` and `logits`, and what they pass on to each other.

    Attributes:
        nodes: of the whole graph, in an order in which they can be computed.
    """

    def __init__(self, graph: ir.Graph) -> None:
        graph.sort()
        self.nodes = list(graph)
        self._graph = graph
        self._place = {node: i for i, node in enumerate(self.nodes)}
        (tokens,) = (value for value in graph.inputs if value.name == "input_ids")
        (logits,) = (value for value in graph.outputs if value.name == "logits")
        self._tokens = tokens
        self._inside = self._readers(tokens) & self._sources(logits)

    def cuts(self) -> list[int]:
        """Places of the nodes that every path from tokens to logits runs through."""
        found = []
        reach = self._furthest(self._tokens)
        for i in sorted(self._inside):
            if reach <= i:
                found.append(i)
            reach = max(reach, *(self._furthest(value) for value in self.nodes[i].outputs))
        return found

    def uses(self, prefix: str) -> list[int]:
        """Places where weights whose names begin with `prefix` enter the stream."""
        found: set[int] = set()
        waiting = [v for name, v in self._graph.initializers.items() if name.startswith(prefix)]
        while waiting:
            for node in waiting.pop().consumers():
                if self._place[node] in self._inside:
                    found.add(self._place[node])
                else:
                    waiting.extend(node.outputs)
        return sorted(found)

    def residual(self, place: int) -> ir.Value | None:
        """The residual stream as it leaves the node at `place`; None behind the last node."""
        if place >= len(self.nodes):
            return None
        node = self.nodes[place]
        index = _SUM_INSIDE.get(node.op_type, 0)
        if index >= len(node.outputs):
            node.resize_outputs(index + 1)
        for omitted in node.outputs:
            omitted.name = omitted.name or ""
        value, like = node.outputs[index], node.outputs[0]
        value.name = value.name or f"{like.name}.sum"
        value.type, value.shape = value.type or like.type, value.shape or like.shape
        return value

    def _furthest(self, value: ir.Value) -> int:
        return max((p for p in self._places(value.consumers()) if p in self._inside), default=-1)

    def _places(self, nodes: Iterable[ir.Node]) -> list[int]:
        return [self._place[node] for node in nodes if node.op_type not in _OF_SIZES]

    def _readers(self, start: ir.Value) -> set[int]:
        """Nodes that depend on `start`."""
        found: set[int] = set()
        waiting = [start]
        while waiting:
            new = set(self._places(waiting.pop().consumers())) - found
            found |= new
            waiting.extend(value for place in new for value in self.nodes[place].outputs)
        return found

    def _sources(self, end: ir.Value) -> set[int]:
        """Nodes that `end` depends on."""
        found: set[int] = set()
        waiting: list[ir.Value | None] = [end]
        while waiting:
            value = waiting.pop()
            node = None if value is None else value.producer()
            if node is not None and self._place[node] not in found:
                found.add(self._place[node])
                waiting.extend(node.inputs)
        return found
