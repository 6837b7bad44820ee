"""L0: the file's own bytes against the checkpoint.

Reads the ONNX file as a stranger would, from its protobuf and external data, and compares every
planned initializer element by element; and checks that the integers are what a DequantizeLinear of
the right axis and block multiplies by the right scales.
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.onnx.activations import QDQ
from exporters.onnx.folder.model_file import OnnxFileError, read_model, resolve_links
from exporters.onnx.loaded_heads import is_loaded
from exporters.onnx.options import OPTIONS_KEY, Options
from exporters.onnx.planning import plan
from exporters.onnx.plans import Plan, PlannedTensor
from exporters.onnx.weights.initializers import pieces
from exporters.onnx.weights.integers import grid_of
from exporters.onnx.weights.storage import INTEGER_FORMS
from exporters.planning import refuse_inexact
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import UserError, first_line
from lrqat.foreign_files import parse_json

# As many elements as no buffer of a model has (rotary frequencies, say), only a weight.
_LARGE = 1 << 18


def verify(
    folder: str | Path, checkpoint: Checkpoint, progress: Callable[[str], None] | None = None
) -> dict[str, int]:
    """Compare every weight of the ONNX folder with `checkpoint`.

    Returns:
        Elements that differ, by initializer name. All zero is a pass; a missing tensor, one that
        the graph does not use as planned, or a large one that was not planned, counts whole.

    Raises:
        OnnxFileError: model.onnx or its data cannot be read.
        ExportRefusedError: the checkpoint has no exact form in ONNX, with the options of the file.
        CheckpointError: the checkpoint is not valid.
    """
    model = read_model(Path(folder))
    resolve_links(model, Path(folder))
    planned: Plan = plan(checkpoint, exported_options(model))
    # What has no form in the plan would not be compared.
    refuse_inexact(planned.refusals, f"{folder} cannot be an exact export of {checkpoint.path}")
    mismatches: dict[str, int] = {}
    names = {tensor.name for tensor in planned.tensors}
    for name, extra in model.graph.initializers.items():
        if name not in names and _elements(extra) >= _LARGE:
            mismatches[name] = _elements(extra)  # a copy that the tracer made of a weight, say
    for tensor in planned.tensors:
        value = model.graph.initializers.get(tensor.name)
        mismatches[tensor.name] = _mismatches(value, tensor, planned)
        if progress:
            progress(tensor.name)
    return mismatches


def _elements(value: ir.Value) -> int:
    return 0 if value.const_value is None else math.prod(value.const_value.shape.numpy())


def _mismatches(value: ir.Value | None, tensor: PlannedTensor, planned: Plan) -> int:
    elements = math.prod(tensor.shape)
    if value is None or value.const_value is None:
        return elements
    held = value.const_value
    if held.dtype != tensor.dtype or tuple(held.shape) != tensor.shape:
        return elements
    used = _USES.get(tensor.form)
    if used and not used(value, tensor, planned):
        return elements
    differing, start = 0, 0
    for expected in pieces(tensor.form, planned.checkpoint, tensor.source, tensor.dtype):
        try:
            found = _numbers(held, start, expected.size)
        except Exception as error:  # short, missing or outside its folder
            raise OnnxFileError(
                f"the data of {tensor.name} cannot be read: {first_line(error)}"
            ) from None
        differing += int((_bits(found) != _bits(expected.reshape(-1))).sum())
        start += expected.size
    # onnx_ir would keep every tensor, unpacked, until the model goes; the view must go before it.
    del found
    if isinstance(held, ir.ExternalTensor):
        held.release()
    return differing


def _numbers(held: ir.TensorProtocol, start: int, count: int) -> NDArray[Any]:
    """`count` numbers of a tensor of the file from number `start` on, flat."""
    if not isinstance(held, ir.ExternalTensor) or held.dtype.bitwidth < 8:
        return held.numpy().reshape(-1)[start : start + count]
    # Not through numpy(), which maps the file: every page that was looked at counts as memory.
    dtype = held.dtype.numpy()
    offset = (held.offset or 0) + start * dtype.itemsize
    found = np.fromfile(held.path, dtype, count, offset=offset)
    if len(found) != count:
        raise ValueError("it is cut off; export it again")
    return found


def _multiplied(value: ir.Value, tensor: PlannedTensor, planned: Plan) -> bool:
    """Whether one DequantizeLinear consumes the integers, with their own scales, as trained."""
    if planned.loads_head and tensor.source == planned.embedding_and_head.of_logits:
        return is_loaded(value, planned)
    consumers = value.consumers()
    if len(consumers) != 1 or consumers[0].op_type != "DequantizeLinear":
        return False
    node, grid = consumers[0], grid_of(planned.checkpoint, tensor.source)
    form = INTEGER_FORMS[str(planned.options.integer_type)]
    zeros = f"{tensor.source}.weight_zero_point"
    has_zeros = any(other.name == zeros for other in planned.tensors)
    parts = [tensor.name, f"{tensor.source}.weight_scale", *([zeros] if has_zeros else [])]
    block = form.block_of(grid, tensor.shape[0])
    expected = (1, 0) if block is None else (0, block)
    return _inputs(node) == parts and _blocks(node) == expected


def _looked_up(value: ir.Value, tensor: PlannedTensor, planned: Plan) -> bool:
    """Whether rows of a part are looked up, and a head that shares it has the right blocks."""
    lookups = [node for node in value.consumers() if node.op_type == "Gather"]
    if len(lookups) != 1 or lookups[0].attributes.get_int("axis", 0) != 0:
        return False
    products = _dequantizers(node for node in value.consumers() if node.op_type != "Gather")
    if planned.embedding_and_head.head is not None:
        return not products
    if planned.loads_head:
        return not products and (tensor.form != "codes" or is_loaded(value, planned))
    size = grid_of(planned.checkpoint, tensor.source).group_size
    return len(products) == 1 and _blocks(products[0]) == ((1, 0) if size is None else (0, size))


def _dequantizers(nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """Every DequantizeLinear that nodes lead to."""
    seen: dict[int, ir.Node] = {}  # a damaged graph may run in circles
    open_ones = list(nodes)
    while open_ones:
        node = open_ones.pop()
        if id(node) not in seen:
            seen[id(node)] = node
            if node.op_type != "DequantizeLinear":
                open_ones += [use for output in node.outputs for use in output.consumers()]
    return [node for node in seen.values() if node.op_type == "DequantizeLinear"]


def _blocks(node: ir.Node) -> tuple[int, int]:
    """Axis and size of the blocks of a DequantizeLinear."""
    return node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)


def _rounds(value: ir.Value, tensor: PlannedTensor, planned: Plan) -> bool:
    """Whether a range is that of one QuantizeLinear and DequantizeLinear, if it is for them."""
    if planned.roundings[tensor.source].form != QDQ:
        return True
    consumers = sorted(value.consumers(), key=lambda node: node.op_type)
    ranges = [f"{tensor.source}.input.{part}" for part in ("scale", "zero_point")]
    return [node.op_type for node in consumers] == ["DequantizeLinear", "QuantizeLinear"] and all(
        _inputs(node)[1:] == ranges for node in consumers
    )


def _inputs(node: ir.Node) -> list[str | None]:
    return [None if value is None else value.name for value in node.inputs]


# How the graph must use a form of tensor, where it could be used wrongly without a word.
_USES: dict[str, Callable[[ir.Value, PlannedTensor, Plan], bool]] = {
    "integers": _multiplied,
    "codes": _looked_up,
    "row_scales": _looked_up,
    "row_zero_points": _looked_up,
    "input_scale": _rounds,
    "input_zero_point": _rounds,
}


def exported_options(model: ir.Model) -> Options:
    """The options that the file was made with, as it says itself; the defaults if it does not."""
    text = model.metadata_props.get(OPTIONS_KEY)
    if text is None:
        return Options()
    try:
        said = parse_json(text.encode())
        # What there was before there was a choice.
        before = dict.fromkeys(("embedding_type", "head_type"), said.get("float_type"))
        before |= {"integer_type": "signed", "attention": "node"}
        return Options(**(before | said))
    except (ValueError, TypeError, AttributeError, RecursionError, UserError):
        raise OnnxFileError(f"{OPTIONS_KEY} of the file is damaged; export it again") from None


def _bits(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Floats as bits, so that NaN equals itself and -0 differs from 0; integers in numpy types."""
    if array.dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
    # numpy compares its own types ten times as fast as those of two and four bits.
    return array.astype(np.int32 if array.dtype in (np.uint8, np.uint16) else np.int8)
