"""What an error in a weight does to the model's KL: its Fisher information, by rows and columns.

To second order, an error D of one weight matrix changes the distribution p of the next token by

    KL(p, p') = 1/2 E[(g . D)^2]        g = d log p(y) / dW, y drawn from p itself

The labels of different positions are drawn independently and g has mean 0, so that the gradient G
of a whole sequence of T tokens serves for all of them: E[(G . D)^2] is the sum of the T terms.
Errors of rounding have no sign in common, which leaves the squares alone, and those are kept by row
and by column, whose product stands for the single weight:

    KL = 1/2 sum over i, j of F_ij D_ij^2       F_ij = r_i c_j / sum(r)       r, c: sums of G^2 / T

One backward pass a sequence serves all weights and all grids; gradients are dropped as soon as they
are squared and summed. Source: the expected Fisher of Martens, "New insights and perspectives on
the natural gradient method", 2020; its factors as in Shazeer and Stern, "Adafactor", 2018.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrqat.errors import ModelError
from lrqat.layers.modes import evaluating


@dataclass(frozen=True)
class Curvature:
    """r and c of one weight, in nats a token for an error of 1.

    Attributes:
        rows: float32 (..., rows), of the parameter as its layer keeps it.
        columns: float32 (..., columns).
    """

    rows: Tensor
    columns: Tensor


def measure_curvature(
    model: Any, weights: Mapping[str, nn.Parameter], sequences: Tensor, *, seed: int = 0,
    progress: Any = None,
) -> dict[str, Curvature]:  # fmt: skip
    """The curvature of some weights of a model on a text.

    Args:
        model: a causal LM in full precision, left as it was.
        weights: name -> its parameter, (..., rows, columns) as its layer keeps it.
        sequences: int64 (sequences, tokens).
        seed: of the drawn labels.
        progress: wraps the iterable of sequences; None shows nothing.

    Raises:
        ModelError: a gradient is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    sums = {name: _Squares() for name in weights}
    trained = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    handles = [_watch(weights[name], sums[name]) for name in weights]
    device = next(model.parameters()).device
    try:
        with evaluating(model):
            for sequence in progress(sequences) if progress else sequences:
                _backward(model, sequence[None].to(device), generator)
    finally:
        for handle in handles:
            handle.remove()
        model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_()
    return {name: of_weight.mean(name, sequences.numel()) for name, of_weight in sums.items()}


def _backward(model: Any, ids: Tensor, generator: torch.Generator) -> None:
    with torch.enable_grad():
        logits: Tensor = model(ids).logits[0].float()
        drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)
        labels = drawn[:, 0].to(logits.device)
        F.cross_entropy(logits, labels, reduction="sum").backward()


class _Squares:
    """Sums of squared gradients of one weight."""

    def __init__(self) -> None:
        self._rows: Tensor | float = 0.0
        self._columns: Tensor | float = 0.0

    def add(self, gradient: Tensor) -> None:
        squares = gradient.float().square()
        self._rows = self._rows + squares.sum(-1)
        self._columns = self._columns + squares.sum(-2)

    def mean(self, name: str, tokens: int) -> Curvature:
        rows, columns = (torch.as_tensor(x) / tokens for x in (self._rows, self._columns))
        if not torch.isfinite(rows).all():
            raise ModelError(
                f"the gradient of {name} holds NaN or infinity; use --dtype float32 or bfloat16"
            )
        return Curvature(rows, columns)


def _watch(parameter: nn.Parameter, squares: _Squares) -> Any:
    def take(changed: Tensor) -> None:
        assert changed.grad is not None
        squares.add(changed.grad)
        changed.grad = None

    parameter.requires_grad_()
    return parameter.register_post_accumulate_grad_hook(take)
