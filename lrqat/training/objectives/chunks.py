"""A loss of logits, computed a few tokens at a time.

Logits are the largest tensor of a training step by far: 2,048 tokens of a vocabulary of 128,000 are
1 GB in float32, and a loss keeps several such. So the text is taken in chunks: logits of a chunk,
its loss, its gradient with respect to the features, and on to the next. What is kept for backward
is a gradient as large as the features, and nothing is computed twice.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_CHUNK_BYTES = 1 << 23  # of one float32 tensor of logits: a chunk needs about five, best in cache
_LEAST_CHUNK_TOKENS = 64  # fewer make a matmul slow

LossOfChunk = Callable[[Tensor, slice], Tensor]


def chunked_loss(
    loss_of: LossOfChunk,
    features: Tensor,
    trained: list[Tensor],
    vocabulary: int,
    *,
    count: int | None = None,
) -> Tensor:
    """Mean over positions of a loss that is a sum over positions, a chunk of them at a time.

    Gradients reach `features` and `trained` through autograd as they would without chunks; those
    of `trained` are summed in float32.

    Args:
        loss_of: (features (n, hidden), which positions) -> scalar, their summed loss.
        features: (positions, hidden).
        trained: what else `loss_of` uses that has a gradient.
        vocabulary: logits per position, from which the size of a chunk follows.
        count: what the sum is divided by; None: positions.
    """
    chunk = max(_LEAST_CHUNK_TOKENS, _CHUNK_BYTES // (4 * vocabulary))
    learning = torch.is_grad_enabled() and any(t.requires_grad for t in (features, *trained))
    count = len(features) if count is None else count
    return _ChunkedLoss.apply(loss_of, chunk, count, learning, features, *trained)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loss_of: LossOfChunk,
        chunk: int,
        count: int,
        learning: bool,
        features: Tensor,
        *trained: Tensor,
    ) -> Tensor:
        total = torch.zeros((), dtype=wide(features.dtype), device=features.device)
        grad_features = torch.empty_like(features) if learning else None
        grads = [torch.zeros_like(p, dtype=wide(p.dtype)) for p in trained] if learning else []
        for start in range(0, len(features), chunk):
            positions = slice(start, min(start + chunk, len(features)))
            piece = features[positions].detach().requires_grad_(learning)
            with torch.set_grad_enabled(learning):
                loss = loss_of(piece, positions)
            total += loss.detach()
            if grad_features is not None:
                # Of the sum, not the mean, so that half precision does not lose small gradients.
                of_piece, *of_trained = torch.autograd.grad(loss, [piece, *trained])
                grad_features[positions] = of_piece
                for summed, part in zip(grads, of_trained, strict=True):
                    summed += part
        ctx.count, ctx.dtypes = count, [p.dtype for p in trained]
        if grad_features is not None:
            ctx.save_for_backward(grad_features, *grads)
        return total / ctx.count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        factor = grads[0] / ctx.count
        grad_features, *of_trained = ctx.saved_tensors
        scaled = [
            (grad * factor).to(dtype) for grad, dtype in zip(of_trained, ctx.dtypes, strict=True)
        ]
        return None, None, None, None, grad_features * factor, *scaled


def wide(dtype: torch.dtype) -> torch.dtype:
    """Float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
