"""What an ONNX folder rounds activations, keys and values to, and the same folder without that.

Whole models that round cannot agree to the last bit: float32 sums that differ in their last bit now
and then fall on either side of a rounding boundary, and the layers behind get another input. So the
proof takes the two apart. Each rounding by itself: what went into it and what came out are taken
from the running graph, and PyTorch rounds the one and must get the other, bit for bit. And
everything else: the file's own graph with every rounding bypassed, against PyTorch without it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from exporters.onnx.activations import KERNEL, cache_bits, roundings
from exporters.onnx.folder.model_file import read_model
from exporters.onnx.verification import exported_options
from lrqat.activations.grids import ActivationRange, quantize
from lrqat.activations.kv_cache import kv_bits, quantize_kv_cache, restore_kv_cache
from lrqat.activations.quantizer import quantizers
from lrqat.activations.table import BLOCK, ActivationGrid, find_activation_grid
from lrqat.checkpoint.reader import Checkpoint
from lrqat.runtimes.onnx_runtime.perplexity import feeds_of
from lrqat.runtimes.onnx_runtime.session import OnnxRuntime, serialized

_ROUNDINGS = ("Round", "QuantizeLinear")
_PRODUCTS = ("MatMul", "Gemm", "Attention")


class Place(NamedTuple):
    """One rounding in a graph.

    Attributes:
        grid: what it rounds to.
        before: the value that is rounded.
        after: what it becomes.
    """

    grid: ActivationGrid
    before: ir.Value
    after: ir.Value


def differing_roundings(
    folder: str | Path, checkpoint: Checkpoint, tokens: NDArray[np.int64]
) -> dict[str, int]:
    """Values that PyTorch rounds otherwise than the graph; all zero is a pass.

    Args:
        folder: from the ONNX exporter.
        checkpoint: what was exported, trained with rounding or not.
        tokens: a text (n,).

    Returns:
        An entry for each layer whose input is rounded in the graph, and for each `present.N.key`
        and `.value`; 1 where the rounding is not found in the graph. Where the kernel of a product
        rounds by itself (`ort-level4`) there is nothing in the graph to look at.
    """
    model = read_model(Path(folder))
    found = _places(model, checkpoint)
    differing = {name: 1 for name, place in found.items() if place is None}
    places = {name: place for name, place in found.items() if place}
    if not places:
        return differing
    present = {value.name for value in model.graph.outputs}
    wanted = {value.name: value for place in places.values() for value in place[1:]}
    model.graph.outputs.extend(v for name, v in wanted.items() if name not in present)
    with OnnxRuntime.open(folder, accuracy_level=1, graph=serialized(model)) as opened:
        results = opened.session.run(list(wanted), feeds_of(opened.session, tokens))
    values = {name: torch.from_numpy(value) for name, value in zip(wanted, results, strict=True)}
    for name, (grid, before, after) in places.items():
        expected = quantize(values[before.name], grid, _ranges(checkpoint, name, grid))
        differing[name] = int((expected != values[after.name]).sum())
    return differing


def unrounded_graph(folder: str | Path, checkpoint: Checkpoint) -> bytes:
    """The folder's model.onnx with every rounding bypassed; the data stays where it is."""
    model = read_model(Path(folder))
    for place in filter(None, _places(model, checkpoint).values()):
        for use in list(place.after.uses()):
            use.node.replace_input_with(use.idx, place.before)
    return serialized(model)


@contextmanager
def unrounded(folder: str | Path, checkpoint: Checkpoint) -> Iterator[OnnxRuntime]:
    """The folder without any rounding, and without quantised kernels: float32 products alone."""
    rounds = checkpoint.manifest.get("activations")
    graph = unrounded_graph(folder, checkpoint) if rounds else None
    with OnnxRuntime.open(folder, without_kernels=True, graph=graph) as opened:
        yield opened


@contextmanager
def without_rounding(model: Any) -> Iterator[None]:
    """Let a reference round neither activations nor keys and values."""
    bits = kv_bits(model)
    restore_kv_cache(model)
    hooks = [
        quantizer.register_forward_hook(lambda module, inputs, output: inputs[0])
        for _, quantizer in quantizers(model)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        if bits is not None:
            quantize_kv_cache(model, bits)


def _places(model: ir.Model, checkpoint: Checkpoint) -> dict[str, Place | None]:
    """Every rounding that should be in the graph, by layer or output of the cache; None: is not."""
    outputs = {str(value.name): value for value in model.graph.outputs}
    found = {}
    for name, rounding in roundings(checkpoint, exported_options(model).resolved()).items():
        if rounding.form != KERNEL:
            after = _input_of_product(model.graph, name)
            found[name] = _place(rounding.grid, after, after)
    bits = cache_bits(checkpoint)
    grid = find_activation_grid(f"int{bits}-token") if bits else None
    for name, value in outputs.items():
        if grid and name.startswith("present.") and name.endswith((".key", ".value")):
            scale = outputs.get(f"{name}_scale")
            after = _cached(value, scale)
            found[name] = _place(grid, value if scale else after, after)
    return found


def _input_of_product(graph: ir.Graph, name: str) -> ir.Value | None:
    """What layer `name` multiplies its weight with."""
    value = graph.initializers.get(f"{name}.weight")
    for _ in ("DequantizeLinear", "MatMul"):
        nodes = value.consumers() if value is not None else ()
        if len(nodes) != 1:
            return None
        value = nodes[0].outputs[0]
    return _first_computed(nodes[0])


def _cached(output: ir.Value, scale: ir.Value | None) -> ir.Value | None:
    """The rounded keys or values that attention reads, [batch, heads, tokens, head_dim]."""
    if scale is None:  # values are passed on: the new ones are joined to the past
        return _joined(output)
    nodes = scale.consumers()  # integers are, and made values of again
    return nodes[0].outputs[0] if len(nodes) == 1 else None


def _joined(output: ir.Value) -> ir.Value | None:
    """What Concat, or Attention by itself, joins to the past."""
    node = output.producer()
    if node is None or node.op_type != "Attention":
        return _first_computed(node)
    new = node.inputs[output.index() or 0]  # (Q, K, V) become (Y, present key, present value)
    while new is not None and (flat := new.producer()) and flat.op_type in ("Reshape", "Transpose"):
        new = flat.inputs[0]
    return new


def _place(grid: ActivationGrid, start: ir.Value | None, after: ir.Value | None) -> Place | None:
    """The rounding to `grid` that is found on the way back from `start`."""
    steps = list(_backwards(start))
    kinds = [node.op_type for node, _ in steps]
    at = next((i for i, kind in enumerate(kinds) if kind in (*_ROUNDINGS, *_PRODUCTS)), None)
    if after is None or at is None or kinds[at] in _PRODUCTS:
        return None
    # Round is of x / scale or x * (127 / amax), and x may have been cut into blocks before that.
    at += (kinds[at] == "Round") + (grid.per == BLOCK)
    at += kinds[at + 1] == "Cast"  # half precision is rounded in float32
    return Place(grid, steps[at][1], after)


def _backwards(value: ir.Value | None) -> Iterator[tuple[ir.Node, ir.Value]]:
    """The node that makes `value`, and its first computed input; the same of that, and so on."""
    while value is not None and (node := value.producer()) is not None:
        value = _first_computed(node)
        if value is not None:
            yield node, value


def _first_computed(node: ir.Node | None) -> ir.Value | None:
    """The first input of `node` that is neither constant nor an input of the graph."""
    inputs = node.inputs if node is not None else ()
    return next((i for i in inputs if i is not None and i.producer() is not None), None)


def _ranges(checkpoint: Checkpoint, name: str, grid: ActivationGrid) -> ActivationRange | None:
    if not grid.static:
        return None
    parts = (checkpoint.floating(f"{name}.input_{part}") for part in ("scale", "zero_point"))
    return ActivationRange(*(torch.from_numpy(part) for part in parts))
