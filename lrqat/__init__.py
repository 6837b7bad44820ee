"""lrqat: quantisation-aware training through low-rank matrices inside the rounding (LR-QAT).

The names below are the public API. They are imported on first use, so that the exporters, which
need only `lrqat.grid` and `lrqat.checkpoint`, never load torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "GRIDS": "lrqat.grid",
    "Grid": "lrqat.grid",
    "find_grid": "lrqat.grid",
    "Checkpoint": "lrqat.checkpoint",
    "LRQATLinear": "lrqat.layer",
    "prepare": "lrqat.prepare",
    "plan_surgery": "lrqat.surgery",
    "TrainConfig": "lrqat.config",
    "train": "lrqat.training",
    "plan_training": "lrqat.plan",
    "load_reference": "lrqat.reference",
    "onnx_perplexity": "lrqat.onnx_evaluation",
    "UserError": "lrqat.errors",
}

__all__ = ["__version__", *_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'lrqat' has no attribute {name!r}")
