"""Blocks of tokens in which documents are kept apart.

The tokens are those of a stream, and where documents begin is known. Then either

    positions   several documents share a block. Positions start anew with each, from which the
                model's attention knows that it must not cross, see `lrqat.models.documents`
    alone       a block begins with a document, which alone is learned. What follows it in the
                stream fills the block, is read, and changes nothing before it: attention and states
                run forward. For models that do not look at positions

What begins a document is predicted by nothing, and is learned in neither. A document that is longer
than the rest of its block is cut there, and what follows begins anew.
"""

import numpy as np
from numpy.typing import NDArray

from lrqat.training.data.blocks import TokenBlocks
from lrqat.training.data.packing import STREAM

POSITIONS, ALONE = "positions", "alone"


def keep_apart(
    tokens: NDArray[np.int32],
    starts: NDArray[np.bool_],
    length: int,
    how: str,
    learned: NDArray[np.bool_] | None = None,
) -> TokenBlocks:
    """A stream of tokens as blocks.

    Args:
        tokens: int32 (n,), at least `length`.
        starts: bool (n,), the first tokens of documents.
        length: tokens a block.
        how: `STREAM`, `POSITIONS` or `ALONE`.
        learned: bool (n,), tokens that are learned; None: all.
    """
    if how == STREAM:
        return TokenBlocks(tokens, length, learned)
    known = ~starts if learned is None else learned & ~starts
    if how == POSITIONS:
        return TokenBlocks(tokens, length, known, starts)
    begins, ends = _pieces(starts, length)
    places = begins[:, None] + np.arange(length)
    inside = places < ends[:, None]
    inside[:, 0] = False
    places %= len(tokens)  # past the end of the stream comes its beginning
    return TokenBlocks(tokens[places].reshape(-1), length, (known[places] & inside).reshape(-1))


def _pieces(starts: NDArray[np.bool_], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where pieces of documents begin and end, of at most `length` tokens and at least two."""
    first = np.flatnonzero(starts | (np.arange(len(starts)) == 0))
    last = np.append(first[1:], len(starts))
    cut = [np.arange(begin, end, length) for begin, end in zip(first, last, strict=True)]
    begins = np.concatenate(cut)
    ends = np.minimum(begins + length, np.repeat(last, [len(each) for each in cut]))
    predicts = ends - begins > 1  # one token alone has nothing to predict
    return begins[predicts], ends[predicts]
