"""Give initializers the names of the plan: the tracer puts the wrapper's before them."""

import onnx_ir as ir


def name_initializers(model: ir.Model, prefix: str) -> None:
    """Strip `prefix` from the names of all initializers."""
    for name, value in list(model.graph.initializers.items()):
        if name.startswith(prefix):
            # Renaming an initializer's value re-keys it in the graph.
            value.name = name.removeprefix(prefix)
