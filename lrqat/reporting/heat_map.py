"""KL over readable text: the worst windows of a text, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrqat.evaluation.token_divergence import TokenDivergence
from lrqat.foreign_text import shown
from lrqat.reporting.material import TokenKL

LEVELS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # nats, where a colour ends and the next begins
_OPEN, _MOST_WINDOWS, _MOST_TOKENS = 2, 12, 8000  # a page of some megabytes, on any phone
_LEADING = 240  # characters of the text before
_WORST = 20
_AROUND = 8  # tokens before one of the worst that are shown with it


@dataclass(frozen=True)
class Spot:
    """A token of the map: its text, and the number of its colour from 0."""

    text: str
    level: int


@dataclass(frozen=True)
class Window:
    """A window of the map.

    Attributes:
        number: its own in the text.
        kl: mean of its tokens, nats.
        leading: the end of the text before.
        spots: its tokens.
        details: of each token [KL, share the base gave it, the model, base's guesses, model's].
        open: whether it is shown at once.
    """

    number: int
    kl: float
    leading: str
    spots: tuple[Spot, ...]
    details: list[list[Any]]
    open: bool


@dataclass(frozen=True)
class Worst:
    """A token with a large KL, and the text before it."""

    before: str
    token: TokenDivergence


def windows_of(found: TokenKL) -> list[Window]:
    """The windows with the largest mean KL, the worst first."""
    of_window: dict[int, list[TokenDivergence]] = {}
    for token in found.tokens:
        of_window.setdefault(token.window, []).append(token)
    means = {number: float(np.mean([t.kl for t in own])) for number, own in of_window.items()}
    made: list[Window] = []
    room = _MOST_TOKENS
    for number in sorted(means, key=lambda number: -means[number])[:_MOST_WINDOWS]:
        tokens = of_window[number][:room]
        if not tokens:
            break
        room -= len(tokens)
        leading = found.leading[number] if 0 <= number < len(found.leading) else ""
        made.append(
            Window(
                number=number,
                kl=means[number],
                leading=("…" if len(leading) > _LEADING else "") + shown(leading[-_LEADING:]),
                spots=tuple(Spot(readable(t.token), level(t.kl)) for t in tokens),
                details=[_details(token) for token in tokens],
                open=len(made) < _OPEN,
            )
        )
    return made


def worst_of(found: TokenKL) -> list[Worst]:
    """The tokens with the largest KL, the worst first, each with the text before it."""
    order = sorted(range(len(found.tokens)), key=lambda i: -found.tokens[i].kl)[:_WORST]
    return [Worst(_before(found.tokens, index), found.tokens[index]) for index in order]


def share_of_worst(found: TokenKL, share: float = 0.01) -> float:
    """What part of all KL the worst `share` of the tokens hold."""
    kls = np.sort([token.kl for token in found.tokens])[::-1]
    total = float(kls.sum())
    return float(kls[: max(1, round(share * len(kls)))].sum()) / total if total > 0 else 0.0


def level(kl: float) -> int:
    """The number of a KL's colour."""
    return int(np.searchsorted(LEVELS, kl, side="right"))


def readable(text: str) -> str:
    """A token as text of the map: line ends are seen, and control characters are not obeyed."""
    return in_line(text).replace("↵", "↵\n")


def in_line(text: str) -> str:
    """The same without the line ends themselves."""
    return shown(text).replace("\n", "↵").replace("\t", "⇥") or "·"


def _before(tokens: Sequence[TokenDivergence], index: int) -> str:
    own = [t for t in tokens[max(0, index - _AROUND) : index] if t.window == tokens[index].window]
    return in_line("".join(token.token for token in own)) if own else ""


def _details(token: TokenDivergence) -> list[Any]:
    probabilities = [round(float(np.exp(-max(0.0, nll))), 4) for nll in (token.base_nll, token.nll)]
    guesses = [
        [[in_line(text), round(share, 4)] for text, share in says]
        for says in (token.base_says, token.says)
    ]
    return [round(token.kl, 4), *probabilities, *guesses]
