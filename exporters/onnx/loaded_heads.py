"""Whether a head that is stored in 8 bits becomes, when it is loaded, the weight that was trained.

Its integers go through operators that only change type and shape, lose their zero-points, are
multiplied with their scales, and end in the product with the last hidden states:

    Cast, Reshape, Transpose ...  [Sub zero-points]  Mul scales  Reshape, Transpose ...  MatMul
"""

import onnx_ir as ir

from exporters.onnx.plans import Plan

_LONGEST = 16  # operators from an initializer to the product
_SHAPES = {"Cast", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Identity", "Flatten"}


def is_loaded(value: ir.Value, planned: Plan) -> bool:
    """Whether the integers `value` meet their own scales and zero-points, and then one product.

    Args:
        value: the initializer of integers.
        planned: of the folder.
    """
    source = str(planned.embedding_and_head.of_logits)
    names = {tensor.name for tensor in planned.tensors}
    wanted = [
        (op, name)
        for op, name in (
            ("Sub", f"{source}.weight_zero_point"),
            ("Mul", f"{source}.weight_scale"),
        )
        if name in names
    ]
    found = []
    nodes = [node for node in value.consumers() if node.op_type != "Gather"]
    current = value
    for _ in range(_LONGEST):  # a damaged graph may run in circles
        if len(nodes) != 1 or nodes[0].op_type not in _SHAPES | {"Sub", "Mul"}:
            break
        node = nodes[0]
        if node.op_type not in _SHAPES:
            others = [each for each in node.inputs if each is not current]
            found.append((node.op_type, _origin(others[0] if others else None)))
        current = node.outputs[0]
        nodes = list(current.consumers())
    return found == wanted and [node.op_type for node in nodes] == ["MatMul"]


def _origin(value: ir.Value | None) -> str | None:
    """The initializer that a value is, but for its type and shape."""
    for _ in range(_LONGEST):
        node = None if value is None else value.producer()
        if node is None:
            break
        value = node.inputs[0] if node.op_type in _SHAPES else None
    return None if value is None else value.name
