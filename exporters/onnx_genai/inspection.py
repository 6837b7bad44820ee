"""What a folder in the compact form holds, ours or anybody's; no weights are read."""

from pathlib import Path

from exporters.description import Description
from exporters.onnx.folder.model_file import read_model
from exporters.onnx.inspection import describe, stored_tensors
from exporters.onnx_genai.products import products


def inspect(path: Path) -> Description:
    """Describe the folder `path`: a product's integers, scales and zero-points are one tensor.

    Raises:
        OnnxFileError: a file that is damaged, or data outside the folder.
    """
    model = read_model(path)
    stored = stored_tensors(path, model)
    joined = []
    for product in products(model):
        names = [name for name in product.names if name in stored]
        parts = [stored.pop(name) for name in names]
        if parts:
            form = f"INT{product.bits}, blocks of {product.block}"
            weights = product.rows * product.columns
            joined.append((form, weights, sum(nbytes for _, _, nbytes in parts)))
    return describe(path, model, "ONNX, compact form", [*joined, *stored.values()])
