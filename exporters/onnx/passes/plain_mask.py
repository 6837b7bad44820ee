"""Compute the mask of attention in a few nodes: they run once for every token.

transformers looks the padding up at every position, `attention_mask[batch, position]`, where all
positions in order are the mask itself; combines it with a constant that is true; and expands the
result to the shape that it has.
"""

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from exporters.onnx.passes.matching import constant, input_of, made_by, rank, replace


def plain_mask(model: ir.Model) -> bool:
    """Replace look-ups of every position, conjunctions with true and idle expansions, in place."""
    changed = False
    for node in list(model.graph):
        if node.op_type == "GatherND" and _is_every_position(node):
            tape = Tape()
            axes = tape.op("Constant", [], attributes={"value_ints": [1, 2]})
            found = tape.op("Unsqueeze", [node.inputs[0], axes])
            model.graph.insert_before(node, tape.nodes)
            replace(node.outputs[0], found)
            changed = True
        same = _same(node)
        if same is not None and node.outputs[0] not in model.graph.outputs:
            node.outputs[0].replace_all_uses_with(same)
            changed = True
    return bool(RemoveUnusedNodesPass()(model).modified) or changed


def _is_every_position(node: ir.Node) -> bool:
    """Whether a table [batch, total] is read as [batch, 1, 1, total], entry by entry."""
    table, places = node.inputs
    concat = made_by(places, "Concat")
    if table is None or rank(table) != 2 or concat is None or len(concat.inputs) != 2:
        return False
    row, column = (_index(part) for part in concat.inputs)
    if row is None or column is None:
        return False
    rows, columns = _dimensions(row), _dimensions(column)
    return (
        node.attributes.get_int("batch_dims", 0) == 0
        and rows == [_dimensions(table)[0], "1", "1", "1"]
        and columns[:3] == ["1", "1", "1"]
        and _counts(row)
        and _counts(column)
    )


def _index(part: ir.Value | None) -> ir.Value | None:
    """The index along one dimension, before it was expanded over the others."""
    return input_of(made_by(input_of(made_by(part, "Unsqueeze")), "Expand"))


def _counts(index: ir.Value) -> bool:
    """Whether an index is 0, 1, 2 ..., of any shape."""
    value: ir.Value | None = index
    while (unsqueeze := made_by(value, "Unsqueeze")) is not None:
        value = unsqueeze.inputs[0]
    counter = made_by(value, "Range")
    if counter is None:
        return False
    return constant(counter.inputs[0]) == [0] and constant(counter.inputs[2]) == [1]


def _same(node: ir.Node) -> ir.Value | None:
    """The input that a node's output equals, if there is one."""
    if node.op_type == "And":
        for one, other in (node.inputs, node.inputs[::-1]):
            if one is not None and rank(one) == 0 and constant(one) == [1]:
                return other
    if node.op_type == "Expand":
        given, made = node.inputs[0], node.outputs[0]
        known = given is not None and None not in _dimensions(given)
        return given if given and known and _dimensions(given) == _dimensions(made) else None
    return None


def _dimensions(value: ir.Value) -> list[str | None]:
    """Sizes, and names of those that vary; None where one is not known."""
    if value.shape is None:
        return [None]
    return [str(size) if isinstance(size, int) else size.value for size in value.shape]
