"""Perplexity by llama-perplexity's rule, the same for every runtime.

The text is tokenised once. Its tokens are cut into windows of `context` that do not overlap; the
tail is dropped. If the tokenizer adds a beginning-of-sequence token, it replaces the first token of
every window. Each window is run with an empty cache, and only its second half is scored: the logits
at positions context/2 .. context-2, which predict the tokens context/2+1 .. context-1 (255 of 512).

    perplexity = exp(mean nll)      standard error = perplexity * sqrt(var(nll) / (tokens - 1))

Source: llama.cpp, tools/perplexity/perplexity.cpp, `perplexity` and `process_logits`.
An evaluator is any function from tokens (n,) to logits (n, vocabulary): no torch is needed.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrqat.errors import DataError

RULE = "llama-perplexity"
LogitsFunction = Callable[[NDArray[np.int64]], NDArray[np.float32]]
Progress = Callable[[Iterable[Any]], Iterable[Any]]
LEAST_CONTEXT = 8
_CHUNK_LOGITS = 1 << 24  # 128 MB in float64, whatever the vocabulary


def refuse_beyond(positions: int | None, length: int, setting: str) -> None:
    """Raise DataError if `length`, the value of `setting`, passes a model's learned positions."""
    if positions is not None and length > positions:
        raise DataError(
            f"{setting} {length} is more than the {positions} positions that the model has "
            f"learned; use {setting} {positions} or less"
        )


@dataclass(frozen=True)
class Windows:
    """The token windows that are scored.

    Attributes:
        tokens: int64 (windows, context).
        context: tokens a window.
    """

    tokens: NDArray[np.int64]
    context: int

    @classmethod
    def cut(
        cls,
        tokens: Sequence[int],
        context: int,
        bos: int | None = None,
        limit: int | None = None,
        *,
        positions: int | None = None,
    ) -> "Windows":
        """Cut the tokens of a text into windows.

        Args:
            tokens: ids of the whole text, as the tokenizer gives them.
            context: tokens per window, at least 8.
            bos: id that replaces the first token of each window, or None.
            limit: use only so many windows from the start; None: all.
            positions: how many the model has learned, past which it has none; None: no such end.

        Raises:
            DataError: more context than `positions`, or fewer than 2 * context tokens
                (llama-perplexity's own limit).
        """
        if context < LEAST_CONTEXT:
            raise DataError(
                f"--context {context} is too small; use at least {LEAST_CONTEXT}, usually 512"
            )
        refuse_beyond(positions, context, "--context")
        if limit is not None and limit < 1:
            raise DataError(f"--windows {limit} scores nothing; use at least 1")
        if len(tokens) < 2 * context:
            raise DataError(
                f"the text has {len(tokens)} tokens and perplexity over windows of {context} "
                f"needs at least {2 * context}; give more text or a smaller --context"
            )
        count = len(tokens) // context
        count = count if limit is None else min(count, limit)
        cut = np.asarray(tokens[: count * context], np.int64).reshape(count, context).copy()
        if bos is not None:
            cut[:, 0] = bos
        return cls(cut, context)

    @property
    def scored(self) -> slice:
        """Positions of a window whose logits count."""
        return slice(self.context // 2, self.context - 1)

    @property
    def scored_tokens(self) -> int:
        """Number of predictions over all windows."""
        return len(self.tokens) * (self.context - 1 - self.context // 2)

    def targets(self, window: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tokens that the scored positions of `window` predict."""
        return window[self.context // 2 + 1 :]


@dataclass(frozen=True)
class Perplexity:
    """A measured perplexity.

    Attributes:
        perplexity: exp of the mean negative log-likelihood (nats).
        standard_error: of `perplexity`, from the spread over tokens.
        tokens: predictions scored.
        nll: float64 (tokens,), one negative log-likelihood each.
    """

    perplexity: float
    standard_error: float
    tokens: int
    nll: NDArray[np.float64]

    @classmethod
    def of(cls, nll: NDArray[np.float64]) -> "Perplexity":
        """Summarise negative log-likelihoods (tokens,)."""
        value = math.exp(float(nll.mean()))
        error = value * math.sqrt(float(nll.var()) / (len(nll) - 1))
        return cls(value, error, len(nll), nll)

    def to_json(self) -> dict[str, float | int]:
        """The three numbers."""
        return {
            "perplexity": self.perplexity,
            "standard_error": self.standard_error,
            "tokens": self.tokens,
        }


@dataclass(frozen=True)
class Comparison:
    """Two models on the same windows.

    Attributes:
        target: the one under test.
        reference: the one it should equal.
        divergences: float64 (tokens,), KL(reference || target) at each scored position, nats.
        tops: int64 (tokens, 2), the most likely token at each of them: reference's, target's.
        guesses: int64 (tokens, 2, n), the most likely n likewise, the likeliest first; n may be 0.
        probabilities: float64 (tokens, 2, n), theirs.
    """

    target: Perplexity
    reference: Perplexity
    divergences: NDArray[np.float64]
    tops: NDArray[np.int64]
    guesses: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    @property
    def same_top(self) -> float:
        """Share of positions where both give the same most likely token."""
        return float((self.tops[:, 0] == self.tops[:, 1]).mean())

    @property
    def kl(self) -> float:
        """Mean KL(reference || target), nats."""
        return float(self.divergences.mean())

    @property
    def relative_difference(self) -> float:
        """(target - reference) / reference, of the perplexities."""
        return self.target.perplexity / self.reference.perplexity - 1

    @property
    def standard_errors(self) -> float:
        """|mean difference of nll| in standard errors of that paired difference."""
        difference = self.target.nll - self.reference.nll
        spread = math.sqrt(float(difference.var()) / (len(difference) - 1))
        return abs(float(difference.mean())) / spread if spread else 0.0


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities (n, vocabulary) in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return wide


def perplexity(
    logits_of: LogitsFunction, windows: Windows, progress: Progress | None = None
) -> Perplexity:
    """Measure one model. `progress` wraps the iterable of windows (for one: `tqdm.tqdm`)."""
    nll = []
    for window in progress(windows.tokens) if progress else windows.tokens:
        logits = logits_of(window)[windows.scored]
        for rows, targets in _row_chunks(windows.targets(window), logits):
            nll.append(-_picked(log_softmax(rows), targets))
    return Perplexity.of(np.concatenate(nll))


def compare(
    reference: LogitsFunction,
    target: LogitsFunction,
    windows: Windows,
    progress: Progress | None = None,
    *,
    guesses: int = 0,
) -> Comparison:
    """Measure `target` against `reference` on the same windows, keeping no logits.

    Of every distribution the `guesses` most likely tokens are kept.
    """
    return compare_all(reference, [target], windows, progress, guesses=guesses)[0]


def compare_all(
    reference: LogitsFunction,
    targets: Sequence[LogitsFunction],
    windows: Windows,
    progress: Progress | None = None,
    *,
    guesses: int = 0,
) -> list[Comparison]:
    """As `compare`, of several targets in turn, running the reference once."""
    found = [_Scores(guesses) for _ in targets]
    for window in progress(windows.tokens) if progress else windows.tokens:
        expected = reference(window)[windows.scored]
        for scores, target in zip(found, targets, strict=True):
            pair = (expected, target(window)[windows.scored])
            for rows in _row_chunks(windows.targets(window), *pair):
                scores.add(*rows)
    return [scores.comparison() for scores in found]


class _Scores:
    """What is kept of each scored token of two models."""

    def __init__(self, guesses: int) -> None:
        self._count = guesses
        self._guesses: list[NDArray[np.int64]] = []
        self._probabilities: list[NDArray[np.float64]] = []
        self._reference: list[NDArray[np.float64]] = []
        self._target: list[NDArray[np.float64]] = []
        self._divergences: list[NDArray[np.float64]] = []
        self._tops: list[NDArray[np.int64]] = []

    def add(
        self,
        reference: NDArray[np.float32],
        target: NDArray[np.float32],
        tokens: NDArray[np.int64],
    ) -> None:
        """Score rows of logits (n, vocabulary) of both against the tokens (n,) they predict."""
        log_r, log_t = log_softmax(reference), log_softmax(target)
        self._reference.append(-_picked(log_r, tokens))
        self._target.append(-_picked(log_t, tokens))
        self._divergences.append((np.exp(log_r) * (log_r - log_t)).sum(-1))
        self._tops.append(np.stack([log_r.argmax(-1), log_t.argmax(-1)], 1))
        likely = [_likeliest(log, self._count) for log in (log_r, log_t)]
        self._guesses.append(np.stack([tokens for tokens, _ in likely], 1))
        self._probabilities.append(np.stack([shares for _, shares in likely], 1))

    def comparison(self) -> Comparison:
        divergences = np.concatenate(self._divergences)
        return Comparison(
            target=Perplexity.of(np.concatenate(self._target)),
            reference=Perplexity.of(np.concatenate(self._reference)),
            divergences=divergences,
            tops=np.concatenate(self._tops),
            guesses=np.concatenate(self._guesses),
            probabilities=np.concatenate(self._probabilities),
        )


def _likeliest(
    log_probs: NDArray[np.float64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The most likely tokens of every row and their probabilities, the likeliest first."""
    count = min(count, log_probs.shape[-1])
    if not count:
        return np.empty((len(log_probs), 0), np.int64), np.empty((len(log_probs), 0))
    some = np.argpartition(log_probs, -count, axis=-1)[:, -count:]
    order = np.argsort(-np.take_along_axis(log_probs, some, -1), axis=-1, kind="stable")
    tokens = np.take_along_axis(some, order, -1)
    return tokens, np.exp(np.take_along_axis(log_probs, tokens, -1))


def _picked(log_probs: NDArray[np.float64], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    return log_probs[np.arange(len(targets)), targets]


def chunk_rows(rows: int, vocabulary: int) -> int:
    """How many of the scored rows of a window are looked at at a time."""
    return min(rows, max(1, _CHUNK_LOGITS // vocabulary))


def _row_chunks(
    targets: NDArray[np.int64], *logits: NDArray[np.float32]
) -> Iterable[tuple[Any, ...]]:
    """Rows of each of `logits` with their targets, few enough at a time to bound memory."""
    step = chunk_rows(len(targets), logits[0].shape[-1])
    for start in range(0, len(targets), step):
        rows = slice(start, start + step)
        yield (*(part[rows] for part in logits), targets[rows])
