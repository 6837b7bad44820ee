"""Looking around in a graph, and putting one value in the place of another."""

import onnx_ir as ir


def made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that computes `value`, if it is an `op_type`."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def only_use(value: ir.Value, op_type: str) -> ir.Node | None:
    """The one node that reads `value`, if it is an `op_type`."""
    nodes = value.consumers()
    return nodes[0] if len(nodes) == 1 and nodes[0].op_type == op_type else None


def input_of(node: ir.Node | None) -> ir.Value | None:
    """The first input of a node that may not be there."""
    return None if node is None else node.inputs[0]


def rank(value: ir.Value) -> int:
    """Number of dimensions; -1 where it is not known."""
    return -1 if value.shape is None else len(value.shape)


def size(value: ir.Value, axis: int) -> int:
    """One dimension; -1 where it varies, or is not known."""
    found = None if value.shape is None else value.shape[axis]
    return found if isinstance(found, int) else -1


def constant(value: ir.Value | None) -> list[float]:
    """The numbers of a constant of the graph, flat; none where it is no constant."""
    held = None if value is None else ir.convenience.get_const_tensor(value)
    return [] if held is None else [float(number) for number in held.numpy().reshape(-1)]


def replace(old: ir.Value, new: ir.Value) -> None:
    """Put `new` where `old` is, with its name."""
    name, old.name = old.name, None
    new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name = name
