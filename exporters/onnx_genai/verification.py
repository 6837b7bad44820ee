"""Reading the builder's file back: every trained integer and scale against the checkpoint's.

    NODE.MatMulNBits.qweight   uint8 [N, blocks, block * bits / 8]   lowest bits first
    NODE.MatMulNBits.scales    float [N * blocks]
    NODE.MatMulNBits.qzeros    uint8 [N * ceil(blocks * bits / 8)]

Source: onnxruntime, docs/ContribOperators.md, com.microsoft.MatMulNBits.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.onnx.folder.model_file import read_model, resolve_links
from exporters.onnx_genai.olive import unpack
from exporters.onnx_genai.parts import EMBEDDING, HEAD, Part
from exporters.onnx_genai.planning import plan
from lrqat.checkpoint.reader import Checkpoint

# What the builder joins, by the last part of the name of its product.
_JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}
_HEAD = f"{HEAD}.MatMul.weight"  # floating, [K, N]
_MOST_STEPS = 4  # from a table to its lookup; a damaged graph may run in circles
_NODE = re.compile(r"(.*)\.MatMulNBits\.qweight")


def verify(
    folder: str | Path, checkpoint: Checkpoint, progress: Callable[[str], None] | None = None
) -> dict[str, int]:
    """Compare every trained weight, embedding and head in `folder` with `checkpoint`.

    Returns:
        Elements that differ, by name in the checkpoint; a missing weight counts whole.

    Raises:
        OnnxFileError: model.onnx or its data cannot be read.
        CheckpointError: the checkpoint is not valid.
    """
    model = read_model(Path(folder))
    resolve_links(model, Path(folder))
    initializers, looked_up = model.graph.initializers, _looked_up(model)
    planned = plan(checkpoint).tensors
    mismatches = {part.name: part.rows * part.columns for part in planned}
    shared = looked_up == f"{HEAD}.MatMulNBits.qweight"
    parts = {part.module: part for part in planned if part.name != EMBEDDING or shared}
    for initializer in list(initializers):
        match = _NODE.fullmatch(initializer)
        if match:
            found = _compare(match[1], initializers, parts, checkpoint)
            mismatches |= found
            for name in found:
                if progress:
                    progress(name)
    return mismatches | _tables(initializers, looked_up, checkpoint)


def _compare(
    node: str, initializers: Mapping[str, ir.Value], parts: dict[str, Part], checkpoint: Checkpoint
) -> dict[str, int]:
    """Mismatches of the parts of one product; their rows lie one after the other."""
    stem, _, leaf = node.replace(".attn.", ".self_attn.").rpartition(".")
    names = [f"{stem}.{each}".lstrip(".") for each in _JOINED.get(leaf, (leaf,))]
    codes = _array(initializers, f"{node}.MatMulNBits.qweight")
    rows = len(codes)
    if sum(parts[name].rows for name in names if name in parts) != rows:
        return {}  # another weight's: those of the checkpoint stay missing
    first = parts[names[0]]
    blocks, width = first.columns // first.block, first.columns
    q = unpack(codes.reshape(rows, -1), first.bits, width)
    scale = _array(initializers, f"{node}.MatMulNBits.scales").reshape(rows, blocks)
    packed_zero = _array(initializers, f"{node}.MatMulNBits.qzeros").reshape(rows, -1)
    zero = unpack(packed_zero, first.bits, blocks)
    found, start = {}, 0
    for name in names:
        expected = parts[name].read(checkpoint)
        part = slice(start, start + len(expected[0]))
        wrong = q[part] != expected[0]
        for theirs, ours in ((scale[part], expected[1]), (zero[part], expected[2])):
            wrong |= np.repeat(theirs != ours, first.block, axis=1)
        found[parts[name].name] = int(wrong.sum())
        start = part.stop
    return found


def _looked_up(model: ir.Model) -> str:
    """Name of the initializer that tokens are looked up in, be it transposed or reshaped first."""
    for node in model.graph:
        indices = node.inputs[1] if len(node.inputs) > 1 else None
        if "Gather" in node.op_type and indices is not None and indices.name == "input_ids":
            value = node.inputs[0]
            for _ in range(_MOST_STEPS):
                maker = None if value is None else value.producer()
                if maker is None or not maker.inputs:
                    break
                value = maker.inputs[0]
            return str(value and value.name)
    return ""


def _tables(
    initializers: Mapping[str, ir.Value], looked_up: str, checkpoint: Checkpoint
) -> dict[str, int]:
    """Mismatches of a floating embedding and of a floating head, which the builder transposes."""
    embedding, head = f"{EMBEDDING}.weight", f"{HEAD}.weight"
    places = {embedding: {looked_up}, head: {_HEAD}}
    if checkpoint.config.get("tie_word_embeddings"):
        places[embedding].add(_HEAD)
    found = {}
    for name in places.keys() & set(checkpoint.floating_names):
        expected = checkpoint.floating(name).astype(np.float32)
        found[name] = sum(_differing(initializers, p, expected) for p in places[name])
    return found


def _differing(
    initializers: Mapping[str, ir.Value], place: str, expected: NDArray[np.float32]
) -> int:
    value = _array(initializers, place) if place in initializers else np.empty((0, 0))
    value = value.T if place == _HEAD else value
    same = value.shape == expected.shape
    return int((value != expected).sum()) if same else expected.size


def _array(initializers: Mapping[str, ir.Value], name: str) -> NDArray[Any]:
    stored = initializers[name].const_value
    assert stored is not None
    return stored.numpy()
