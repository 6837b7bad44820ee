"""Modes that a model computes in for a while: without dropout, or with its original weights."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lrqat.layers.weight import QuantizedWeight


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, `model` is in evaluation mode (no dropout); afterwards every module is as it was."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def provides_full_precision(model: nn.Module) -> bool:
    """Whether the original weights can be had back from the frozen ones of a prepared model."""
    weights = [m for m in model.modules() if isinstance(m, QuantizedWeight)]
    return all(w.keeps_original for w in weights)


@contextlib.contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """Inside, a prepared model computes with its original weights; without gradients.

    The weights are built for each product and dropped, so there is no second copy of the model.
    """
    switched: list[Any] = [m for m in model.modules() if hasattr(m, "exact")]
    with torch.no_grad():
        for module in switched:
            module.exact = True
        try:
            yield
        finally:
            for module in switched:
                module.exact = False
