"""Declare a newer operator set than the one the graph was traced for.

torch traces for 23 at most, and 2-bit types came with 25. The operators of a decoder mean the same
in both; only lists of types grew.
"""

import onnx_ir as ir

TRACED = 23
_IR_VERSION = 13  # the first with 2-bit types


def raise_opset(model: ir.Model, opset: int) -> None:
    """Declare `opset` if it is newer than what the graph declares."""
    if opset > TRACED:
        model.opset_imports[""] = opset
        model.ir_version = _IR_VERSION
