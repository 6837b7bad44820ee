"""Let Attention append to the cache, and take queries, keys and values as projections make them.

As traced, a layer concatenates its cache, repeats keys and values for every query head, and
transposes heads before and after: sixteen nodes, and each new token copies the cache six times. The
standard operator does all of it itself, in one copy:

    Q, K, V                   [batch, sequence, heads * head_dim], with q_num_heads, kv_num_heads
    past_key, past_value      the graph's inputs
    Y                         [batch, sequence, heads * head_dim]
    present_key, present_value   the graph's outputs

Three dimensions, not four: OpenVINO (2026.4) takes a query of four to have as many heads as the
keys. A layer whose cache is anything but a concatenation stays as it is.

Source: https://onnx.ai/onnx/operators/onnx__Attention.html
"""

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from exporters.onnx.passes.matching import input_of, made_by, only_use, rank, replace, size

ATTENTION_OPSET = 23  # the first with the operator
_SWAP = (0, 2, 1, 3)  # heads and tokens


@dataclass(frozen=True)
class _Cached:
    """Keys or values, [batch, heads, tokens, head_dim].

    Attributes:
        past: of earlier tokens.
        new: of these.
        present: of both.
    """

    past: ir.Value
    new: ir.Value
    present: ir.Value


def compact_attention(model: ir.Model) -> bool:
    """Rewrite every Attention whose keys and values are concatenated to a cache, in place."""
    changed = False
    for node in list(model.graph):
        if node.op_type != "Attention" or len(node.inputs) > 4:
            continue
        key, value = _cached(node.inputs[1]), _cached(node.inputs[2])
        if key and value and _has_heads(node.inputs[0]) and _has_heads(node.outputs[0]):
            _rewrite(model.graph, node, key, value)
            changed = True
    changed |= bool(RemoveUnusedNodesPass()(model).modified)
    model.graph.sort()
    return changed


def with_cache_inside(model: ir.Model) -> int:
    """How many Attention nodes of `model` append to the cache themselves."""
    return sum(node.op_type == "Attention" and len(node.outputs) > 1 for node in model.graph)


def _rewrite(graph: ir.Graph, node: ir.Node, key: _Cached, value: _Cached) -> None:
    tape = Tape()
    query, mask = node.inputs[0], node.inputs[3] if len(node.inputs) == 4 else None
    assert query is not None
    flat = [_flat(tape, part) for part in (query, key.new, value.new)]
    heads = {"q_num_heads": size(query, 1), "kv_num_heads": size(key.new, 1)}
    kept = {name: attribute.value for name, attribute in node.attributes.items()}
    y, present_key, present_value = tape.op_multi_out(
        "Attention",
        [*flat, mask, key.past, value.past],
        attributes=kept | heads,
        num_outputs=3,
    )
    old = _merged(node.outputs[0])
    if old is None:
        old = node.outputs[0]
        shape = _numbers(tape, [0, 0, size(query, 1), size(old, 3)])
        y = tape.op("Transpose", [tape.op("Reshape", [y, shape])], attributes={"perm": _SWAP})
    graph.insert_before(node, tape.nodes)
    for before, after in ((old, y), (key.present, present_key), (value.present, present_value)):
        replace(before, after)


def _cached(value: ir.Value | None) -> _Cached | None:
    """What `value`, perhaps repeated for groups of queries, is concatenated from."""
    present = None if value is None else _unrepeated(value)
    concat = made_by(present, "Concat")
    if present is None or concat is None or len(concat.inputs) != 2:
        return None
    past, new = concat.inputs
    # Read elsewhere too, it might be the mask that depends on it.
    if past is None or new is None or len(present.uses()) != 1:
        return None
    along_tokens = concat.attributes.get_int("axis", 0) in (2, -2)
    return _Cached(past, new, present) if along_tokens and _has_heads(new) else None


def _has_heads(value: ir.Value | None) -> bool:
    """Whether it is [batch, heads, tokens, head_dim] with known heads and head_dim."""
    return value is not None and rank(value) == 4 and size(value, 1) > 0 and size(value, 3) > 0


def _unrepeated(value: ir.Value) -> ir.Value:
    """Undo transformers' repeat_kv, [b, heads, ...] -> [b, heads, times, ...] -> [b, all, ...]."""
    repeated = input_of(made_by(value, "Reshape"))
    before = input_of(made_by(input_of(made_by(repeated, "Expand")), "Unsqueeze"))
    if before is None or repeated is None or (rank(before), rank(repeated)) != (4, 5):
        return value
    heads, times = size(repeated, 1), size(repeated, 2)
    undone = size(before, 1) == heads and size(value, 1) == heads * times
    return before if undone else value


def _flat(tape: Tape, value: ir.Value) -> ir.Value:
    """[batch, heads, sequence, head_dim] as [batch, sequence, heads * head_dim]."""
    rotary = made_by(value, "RotaryEmbedding")
    inner = value if rotary is None else input_of(rotary)
    heads, width = size(value, 1), size(value, 1) * size(value, 3)
    swap = made_by(inner, "Transpose")
    split = input_of(swap) if _swaps(swap) else None
    if split is None:
        split = tape.op("Transpose", [inner], attributes={"perm": _SWAP})
    flat = input_of(made_by(split, "Reshape"))
    if flat is None or rank(flat) != 3 or size(flat, 2) != width:
        flat = tape.op("Reshape", [split, _numbers(tape, [0, 0, width])])
    if rotary is None:
        return flat
    kept = {name: attribute.value for name, attribute in rotary.attributes.items()}
    return tape.op(
        "RotaryEmbedding", [flat, *rotary.inputs[1:]], attributes=kept | {"num_heads": heads}
    )


def _merged(value: ir.Value) -> ir.Value | None:
    """The [batch, sequence, heads * head_dim] that Attention's result is made into, if it is."""
    swap = only_use(value, "Transpose")
    reshape = only_use(swap.outputs[0], "Reshape") if swap else None
    if reshape is None or not _swaps(swap):
        return None
    found = reshape.outputs[0]
    same = rank(found) == 3 and size(found, 2) == size(value, 1) * size(value, 3)
    return found if same else None


def _swaps(node: ir.Node | None) -> bool:
    return node is not None and tuple(node.attributes.get_ints("perm", ())) == _SWAP


def _numbers(tape: Tape, numbers: list[int]) -> ir.Value:
    return tape.op("Constant", [], attributes={"value_ints": numbers})
