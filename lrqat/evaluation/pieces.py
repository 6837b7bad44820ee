"""The texts of single tokens, as they read in the middle of a line."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

_BROKEN = "\ufffd"  # what a tokenizer gives for a part of a character


class Pieces:
    """Token to text: `pieces[token]`.

    A tokenizer that is asked for one token takes it for the beginning of a text, and those of
    sentencepiece drop the space before it; so each is read behind another token.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._before = self._decode([])
        self._known: dict[int, str] = {}

    def __getitem__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._decode([token]).removeprefix(self._before)
        return self._known[token]

    def text(self, tokens: Iterable[int]) -> str:
        """Of consecutive tokens."""
        return self._decode([int(token) for token in tokens]).removeprefix(self._before)

    def texts(self, tokens: Iterable[int]) -> Iterator[str]:
        """Of each of consecutive tokens; of a character in several parts, the first has it all."""
        for broken, run in groupby(map(int, tokens), key=lambda token: _BROKEN in self[token]):
            parts = list(run)
            if broken and len(parts) > 1:
                yield self.text(parts)
                yield from [""] * (len(parts) - 1)
            else:
                yield from (self[token] for token in parts)

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode([*self._anchor, *tokens]))
