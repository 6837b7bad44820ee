"""Every block begins as a text does in use: with the BOS token, where the tokenizer adds one.

A model that was trained with BOS leans on it: the first token takes the attention that no other
needs (attention sinks: Xiao et al., 2024), and without BOS it is another model. Runtimes put it
there, and so does what a model is measured on (`Windows`; llama.cpp's perplexity).
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from lrqat.training.data.apart import ALONE


def begin_blocks(
    tokens: NDArray[np.int32], starts: NDArray[np.bool_], length: int, how: str, bos: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """A stream of which every block will begin with BOS.

    It is inserted where a block would begin with another token, and is a start then: attention
    cannot go further back than to its block.

    Args:
        tokens: int32 (n,), end to end.
        starts: bool (n,), the first tokens of documents.
        length: tokens a block, two or more.
        how: the stream will be cut, see `lrqat.training.data.apart`.
        bos: the token.

    Returns:
        Both, longer by what was inserted.
    """
    places = []
    bounds = [0, *np.flatnonzero(starts[1:]) + 1, len(tokens)] if how == ALONE else [0, len(tokens)]
    for begin, end in itertools.pairwise(bounds):
        while begin < end:
            there = tokens[begin] == bos
            places += [] if there else [begin]
            begin += length if there else length - 1
    begun = starts.copy()
    begun[places] = False  # the BOS before it is the start
    return np.insert(tokens, places, np.int32(bos)), np.insert(begun, places, True)
