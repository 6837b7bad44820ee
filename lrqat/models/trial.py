"""Whether a model can be run at all, which its configuration alone does not show.

A configuration may describe a model that is built and cannot compute: sizes that do not meet, or
layers that its code does not expect together. What transformers or torch then says ("shape ... is
invalid for input of size ...") names neither the model nor the file.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lrqat.errors import ModelError, refusing

_TOKENS = 8
# What torch says of shapes, which are there without values too.
_SHAPES = re.compile(
    "is invalid for input of size|shapes cannot be multiplied"
    "|must match the (existing )?size|Sizes of tensors must match|to have .* channels"
)


@contextmanager
def running(model: Any) -> Iterator[None]:
    """Where a model's own code runs: whatever it raises becomes a ModelError."""
    with refusing(
        ModelError,
        f"{type(model).__name__} cannot be run as its config.json describes it",
        "correct its sizes, heads and kinds of layers, or use an intact copy of the model",
    ):
        yield


def is_about_shapes(error: RuntimeError) -> bool:
    """Whether torch was given tensors that do not fit, with values or without."""
    return _SHAPES.search(str(error)) is not None


@torch.inference_mode()
def refuse_unrunnable(model: Any) -> None:
    """Run a model in full precision on a few tokens. Raises ModelError if it cannot be run."""
    ids = torch.zeros(1, _TOKENS, dtype=torch.long, device=model.device)
    with running(model):
        model.eval()(input_ids=ids, use_cache=False)
