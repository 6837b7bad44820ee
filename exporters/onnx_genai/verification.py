"""Reading the builder's file back: every trained integer and scale against the checkpoint's.

What a node multiplies with is compared, not what lies under the right names: integers under another
weight's scales differ. `exporters.onnx_genai.products` says how a node stores its weight.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.embedding_and_head import head_is_embedding
from exporters.onnx.folder.model_file import read_model, resolve_links
from exporters.onnx_genai.parts import EMBEDDING, HEAD, Part, is_spelled_out
from exporters.onnx_genai.planning import plan
from exporters.onnx_genai.products import Product, array, products
from exporters.planning import refuse_inexact
from lrqat.checkpoint.reader import Checkpoint

# What the builder joins, by the last part of the name of its product.
_JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}
_HEAD = f"{HEAD}.MatMul.weight"  # unquantized, [K, N]
_MOST_STEPS = 4  # from an embedding to its lookup; a damaged graph may run in circles
_CODES = re.compile(r"(.*)\.MatMulNBits\.qweight")


def verify(
    folder: str | Path, checkpoint: Checkpoint, progress: Callable[[str], None] | None = None
) -> dict[str, int]:
    """Compare every trained weight, the embedding and the head in `folder` with `checkpoint`.

    Returns:
        Weights that differ, by name in the checkpoint; one that is missing, or is multiplied
        otherwise, counts whole.

    Raises:
        OnnxFileError: model.onnx or its data cannot be read.
        ExportRefusedError: the checkpoint has no exact form here.
        CheckpointError: the checkpoint is not valid.
    """
    model = read_model(Path(folder))
    resolve_links(model, Path(folder))
    made = plan(checkpoint)
    # What has no form in the plan would not be compared.
    refuse_inexact(made.refusals, f"{folder} cannot be an exact export of {checkpoint.path}")
    looked_up = _looked_up(model)
    shared = looked_up == f"{HEAD}.MatMulNBits.qweight"
    parts = {part.module: part for part in made.tensors if part.name != EMBEDDING or shared}
    compared: dict[str, int] = {}
    for product in products(model):
        for name, count in _compare(product, parts, checkpoint).items():
            compared[name] = max(count, compared.get(name, 0))  # should two have the same name
            if progress:
                progress(name)
    whole = {part.name: part.rows * part.columns for part in made.tensors}
    return whole | compared | _unquantized(model.graph.initializers, looked_up, checkpoint)


def _compare(product: Product, parts: Mapping[str, Part], checkpoint: Checkpoint) -> dict[str, int]:
    """Mismatches of the parts of a product; nothing of one that is not as planned."""
    wanted = [parts[name] for name in _modules(product) if name in parts]
    found = product.numbers() if wanted and product.reads(wanted) else None
    if found is None:
        return {}
    start, differing = 0, {}
    for part in wanted:
        rows = slice(start, start + part.rows)
        expected = part.read(checkpoint)
        differing[part.name] = _differing([each[rows] for each in found], expected, part.block)
        start = rows.stop
    return differing


def _modules(product: Product) -> list[str]:
    """The checkpoint's names of what a product multiplies with, by the name of its integers."""
    match = _CODES.fullmatch(str(product.codes.name))
    stem, _, leaf = match[1].replace(".attn.", ".self_attn.").rpartition(".") if match else [""] * 3
    return [f"{stem}.{each}".lstrip(".") for each in _JOINED.get(leaf, (leaf,))]


def _differing(
    found: Sequence[NDArray[np.generic]], expected: Sequence[NDArray[np.generic]], block: int
) -> int:
    """Weights whose integer, scale or zero-point differs; of the last two one for each block."""
    wrong = found[0] != expected[0]
    for theirs, ours in zip(found[1:], expected[1:], strict=True):
        wrong |= np.repeat(theirs != ours, block, axis=1)
    return int(wrong.sum())


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


def _unquantized(
    initializers: Mapping[str, ir.Value], looked_up: str, checkpoint: Checkpoint
) -> dict[str, int]:
    """Mismatches of an unquantized embedding and head; the builder transposes the head."""
    embedding, head = f"{EMBEDDING}.weight", f"{HEAD}.weight"
    places = {embedding: {looked_up}, head: {_HEAD}}
    if head_is_embedding(checkpoint):
        places[embedding].add(_HEAD)
    found = {}
    spelled_out = {
        f"{name}.weight" for name in checkpoint.quantized_names if is_spelled_out(checkpoint, name)
    }
    for name in places.keys() & ({*checkpoint.floating_names} | spelled_out):
        if name in spelled_out:
            expected = checkpoint.quantized(name.removesuffix(".weight")).dequantize()
        else:
            expected = checkpoint.floating(name).astype(np.float32)
        found[name] = max(_unlike(initializers, place, expected) for place in places[name])
    return found


def _unlike(initializers: Mapping[str, ir.Value], place: str, expected: NDArray[np.float32]) -> int:
    value = array(initializers[place]) if place in initializers else None
    if value is not None and place == _HEAD:
        value = value.T
    if value is None or value.shape != expected.shape:
        return expected.size
    return int(np.count_nonzero(value != expected))
