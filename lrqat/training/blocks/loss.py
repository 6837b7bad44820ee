"""What the steps of a block minimise: how far it is from the block in full precision.

    error of a token  e = |y - t|^2 / |t|^2        y, t (hidden,): made, and made in full precision
    loss              (1 - a) mean of e over most tokens  +  a mean of e over the sinks

Relative for each token: some have states a hundred times larger than the others, and would be all
that counts. Those, and the first of a sequence or document, are the sinks that attention leans on
where it needs no other token (Xiao et al., "Efficient Streaming Language Models with Attention
Sinks", 2024; Sun et al., "Massive Activations in Large Language Models", 2024). There are few of
them, so that in a plain mean they hardly count: a block could lose them, and all text with them.

What leaves the last block has one use, so it is judged by that: KL of the logits.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lrqat.training.objectives.chunks import chunked_loss, wide

BlockLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # see `block_loss`

SINK_SHARE = 0.1  # a
_MASSIVE = 100  # medians of |t|^2


def block_loss(made: Tensor, target: Tensor, begins: Tensor) -> Tensor:
    """The loss, float32 ().

    Args:
        made: (batch, length, hidden), of the block as it is.
        target: the same, of the block in full precision.
        begins: bool (batch, length), first tokens of sequences and documents.
    """
    made, target = made.float(), target.float()
    size = target.square().mean(-1).clamp(min=torch.finfo(torch.float32).tiny)
    error = (made - target).square().mean(-1) / size
    sinks = begins | (size > _MASSIVE * size.median())
    return (1 - SINK_SHARE) * _mean(error, ~sinks) + SINK_SHARE * _mean(error, sinks)


def logits_loss(tail: Callable[[Tensor], Tensor], vocabulary: int) -> BlockLoss:
    """The loss of the last block: mean over tokens of KL(in full precision || made), in nats.

    Args:
        tail: what follows the block, (batch, length, hidden) to logits of `vocabulary` tokens.
        vocabulary: its tokens.
    """

    def loss(made: Tensor, target: Tensor, begins: Tensor) -> Tensor:
        target = target.flatten(0, 1)

        def of_chunk(hidden: Tensor, chunk: slice) -> Tensor:
            with torch.no_grad():
                wanted = _log_softmax(tail(target[None, chunk]))
            found = _log_softmax(tail(hidden[None]))
            return F.kl_div(found, wanted, reduction="sum", log_target=True)

        return chunked_loss(of_chunk, made.flatten(0, 1), [], vocabulary)

    return loss


def _log_softmax(logits: Tensor) -> Tensor:
    return F.log_softmax(logits, -1, dtype=wide(logits.dtype))


def _mean(error: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, error, 0).sum() / where.sum().clamp(min=1)
