"""What an ONNX file holds of a random tensor, without a model and without a file."""

from types import SimpleNamespace

import onnx_ir as ir

from exporters.onnx.weights.initializers import stored
from exporters.onnx.weights.storage import product_type
from lrqat.grids.grid import GRIDS

FLOAT = ir.DataType.FLOAT
EXACT = [grid for name, grid in GRIDS.items() if not grid.minimum]


def holder(tensor):
    """Something that gives out one made tensor as a checkpoint does."""
    return SimpleNamespace(
        quantized_names=["made"],
        shape=lambda name: tensor.q.shape,
        quantized=lambda name: tensor,
        scales=lambda name: tensor.scales,
        grid=lambda name: tensor.grid,
    )


def arrays(tensor, two_bits=True, integers="signed"):
    """Type of the integers, and the arrays of the file: integers, scales, zero-points."""
    chosen = product_type(tensor.grid, len(tensor.q), two_bits=two_bits, integers=integers)
    forms = {"integers": chosen, f"{integers}_scales": FLOAT}
    if tensor.grid.zero_point or integers == "unsigned":
        forms[f"{integers}_zero_points"] = chosen
    return chosen, [stored(form, holder(tensor), "made", dtype) for form, dtype in forms.items()]
