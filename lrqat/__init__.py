"""lrqat: quantisation-aware training through low-rank matrices inside the rounding (LR-QAT).

The names below are the public API. They are imported on first use, so that the exporters, which
need only `lrqat.grids.grid` and `lrqat.checkpoint.reader`, never load torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "GRIDS": "lrqat.grids.grid",
    "Grid": "lrqat.grids.grid",
    "find_grid": "lrqat.grids.grid",
    "Checkpoint": "lrqat.checkpoint.reader",
    "LRQATLinear": "lrqat.layers.linear",
    "prepare": "lrqat.models.preparation",
    "plan_surgery": "lrqat.models.surgery",
    "TrainConfig": "lrqat.training.config",
    "train": "lrqat.training.run",
    "plan_training": "lrqat.training.plan",
    "load_reference": "lrqat.models.reference",
    "onnx_perplexity": "lrqat.runtimes.onnx_runtime.perplexity",
    "UserError": "lrqat.errors",
}

__all__ = ["__version__", *_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'lrqat' has no attribute {name!r}")
