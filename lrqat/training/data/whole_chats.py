"""Chats of which only answers are learned, in blocks: each answer has its whole prompt before it.

A block begins with the beginning of a chat. Where the next chat does not fit in the rest of a
block, its beginning fills that rest without being learned, and it begins again in the next block:

    | chat 1       | chat 2    | chat 3 ... |      the part of chat 3 is read, not learned
    | chat 3                 | chat 4 ...   |

So nothing is padding, and what is measured on blocks (importance, ranges) is measured on text. A
chat that is longer than a block is cut after its last answer that fits; where the first one does
not, within it.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from lrqat.errors import DataError
from lrqat.training.data.apart import keep_apart
from lrqat.training.data.blocks import TokenBlocks, refuse_too_short
from lrqat.training.data.chats import Chat
from lrqat.training.data.packing import STREAM


class _Blocks:
    """Blocks in the making."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._tokens: list[NDArray[np.int32]] = []
        self._learned: list[NDArray[np.bool_]] = []
        self._ids: list[int] = []
        self._mask: list[bool] = []
        self._begins: list[int] = []  # of chats, among all tokens

    @property
    def total(self) -> int:
        """Tokens so far."""
        return len(self._tokens) * self._length + len(self._ids)

    def add(self, ids: list[int], learned: list[bool]) -> None:
        """A chat that fits in a block."""
        room = self._length - len(self._ids)
        if len(ids) > room:
            self._fill(ids[:room])
        self._begins.append(self.total)
        self._ids += ids
        self._mask += learned
        if len(self._ids) == self._length:
            self._close()

    def _fill(self, ids: list[int]) -> None:
        self._begins.append(self.total)
        self._ids += ids
        self._mask += [False] * len(ids)
        self._close()

    def _close(self) -> None:
        self._tokens.append(np.array(self._ids, np.int32))
        self._learned.append(np.array(self._mask, bool))
        self._ids, self._mask = [], []

    def finished(self, how: str) -> TokenBlocks:
        """All of them, the last one filled with the beginning of the first."""
        refuse_too_short(self.total, self._length)
        if self._ids:
            self._fill(self._tokens[0][: self._length - len(self._ids)].tolist())
        learned = np.concatenate(self._learned)
        starts = np.zeros(len(learned), bool)
        starts[[begin for begin in self._begins if begin < len(starts)]] = True
        return keep_apart(np.concatenate(self._tokens), starts, self._length, how, learned)


def pack_whole(
    chats: Iterable[Chat],
    *,
    length: int,
    most: int,
    how: str = STREAM,
    progress: Callable[[int], object] | None,
    say: Callable[[str], None],
) -> TokenBlocks:
    """Chats into blocks of `length` tokens.

    Args:
        chats: with `learned`.
        length: tokens per block.
        most: tokens after which reading stops.
        how: end to end, or kept apart, see `lrqat.training.data.apart`.
        progress: called with the number of tokens so far, or None.
        say: told how many chats were cut.

    Raises:
        DataError: less than one block of text, or no answer in it.
    """
    blocks, cut, count = _Blocks(length), 0, 0
    for chat in chats:
        ids, learned = _fitting(chat, length)
        count, cut = count + 1, cut + (len(ids) < len(chat))
        blocks.add(ids, learned)
        if progress:
            progress(blocks.total)
        if blocks.total >= most:
            break
    made = blocks.finished(how)
    if made.learned is None or not made.learned[:, 1:].any():
        raise DataError(
            "no chat has an answer to learn within a sequence; give a longer --sequence-length, "
            "or --loss-on all"
        )
    if cut:
        say(
            f"{cut:,} of {count:,} chats are longer than a sequence of {length} tokens, and end "
            "after the last answer that fits; --sequence-length takes longer ones"
        )
    return made


def _fitting(chat: Chat, length: int) -> tuple[list[int], list[bool]]:
    """As much of a chat as fits in a block, up to the end of an answer if one does."""
    assert chat.learned is not None
    if len(chat) <= length:
        return chat.ids, chat.learned
    following = [*chat.learned[1:], False]
    ends = [i + 1 for i in range(length) if chat.learned[i] and not following[i]]
    end = ends[-1] if ends else length
    return chat.ids[:end], chat.learned[:end]
