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

from exporters.onnx.model_file import read_model, resolve_links
from exporters.onnx_genai.olive import unpack
from exporters.onnx_genai.parts import Part
from exporters.onnx_genai.planning import plan
from lrqat.checkpoint import Checkpoint

# What the builder joins, by the last part of the name of its product.
_JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}
_EMBEDDING = "model.embed_tokens.weight"
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
    initializers = model.graph.initializers
    parts = {part.name: part for part in plan(checkpoint).tensors}
    mismatches = {name: part.rows * part.columns for name, part in parts.items()}
    for initializer in list(initializers):
        match = _NODE.fullmatch(initializer)
        if match:
            found = _compare(match[1], initializers, parts, checkpoint)
            mismatches |= found
            for name in found:
                if progress:
                    progress(name)
    return mismatches | _tables(initializers, checkpoint)


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
        found[name] = int(wrong.sum())
        start = part.stop
    return found


def _tables(initializers: Mapping[str, ir.Value], checkpoint: Checkpoint) -> dict[str, int]:
    """Mismatches of the embedding and of a floating head, which the builder transposes."""
    head = "lm_head.MatMul.weight"
    found = {}
    for name, theirs in {_EMBEDDING: _EMBEDDING, "lm_head.weight": head}.items():
        if name in checkpoint.floating_names:
            expected = checkpoint.floating(name).astype(np.float32)
            value = _array(initializers, theirs) if theirs in initializers else np.empty((0, 0))
            value = value.T if theirs == head else value
            same = value.shape == expected.shape
            found[name] = int((value != expected).sum()) if same else expected.size
    return found


def _array(initializers: Mapping[str, ir.Value], name: str) -> NDArray[Any]:
    stored = initializers[name].const_value
    assert stored is not None
    return stored.numpy()
