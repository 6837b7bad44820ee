"""How far a model is from its base, token by token: where few bits hurt.

The mean hides it: most tokens may be as they were, and some far off. KL(base || target) of every
scored token is kept with what both would have said, and summed up by position, by how frequent the
token is in the text, and by what kind of piece it is.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrqat.atomic_files import replaced_file, write_json
from lrqat.errors import DataError
from lrqat.evaluation.perplexity import Comparison, Progress, Windows, compare
from lrqat.evaluation.pieces import Pieces
from lrqat.evaluation.token_divergence import TokenDivergence
from lrqat.models import hub
from lrqat.runtimes.targets import Target, open_target

_QUANTILES = (0.5, 0.9, 0.99)
_PARTS = 4  # of a window, by position
_GUESSES = 3  # that are kept of each distribution


@dataclass(frozen=True)
class Divergence:
    """A model against its base, on one text.

    Attributes:
        path: the target, as it was given.
        base: what it was compared with, likewise.
        runtime: what ran the target.
        bytes: of the target's files.
        context: tokens of a window.
        comparison: the means.
        tokens: every scored token in order.
        leading: of every window, the text that comes before its scored tokens.
        groups: heading -> name -> (mean KL, tokens): "position", "frequency", "kind".
    """

    path: str
    base: str
    runtime: str
    bytes: int
    context: int
    comparison: Comparison
    tokens: list[TokenDivergence]
    leading: list[str]
    groups: dict[str, dict[str, tuple[float, int]]]

    @property
    def quantiles(self) -> dict[str, float]:
        """KL that half, 90 % and 99 % of the tokens stay below, and the largest."""
        found = {f"{q:.0%}": float(np.quantile(self.comparison.divergences, q)) for q in _QUANTILES}
        return found | {"most": float(self.comparison.divergences.max())}

    def worst(self, count: int) -> list[TokenDivergence]:
        """The tokens with the largest KL, the worst first."""
        return sorted(self.tokens, key=lambda token: -token.kl)[:count]

    def worst_windows(self, count: int) -> list[tuple[int, float]]:
        """(number, mean KL) of the worst windows, the worst first."""
        of_window: dict[int, list[float]] = {}
        for token in self.tokens:
            of_window.setdefault(token.window, []).append(token.kl)
        means = [(window, float(np.mean(kls))) for window, kls in of_window.items()]
        return sorted(means, key=lambda item: -item[1])[:count]

    def to_json(self) -> dict[str, Any]:
        """The sums, without single tokens."""
        return {
            "file": self.path,
            "base": self.base,
            "runtime": self.runtime,
            "bytes": self.bytes,
            "context": self.context,
            "perplexity": self.comparison.target.perplexity,
            "base_perplexity": self.comparison.reference.perplexity,
            "kl": self.comparison.kl,
            "kl_quantiles": self.quantiles,
            "same_top": self.comparison.same_top,
            "tokens": len(self.tokens),
            "groups": {
                heading: {name: {"kl": kl, "tokens": n} for name, (kl, n) in rows.items()}
                for heading, rows in self.groups.items()
            },
        }

    def write(self, path: Path, *, overwrite: bool) -> None:
        """Write `to_json` with every token as a JSON file. Raises OutputError."""
        with replaced_file(path, overwrite=overwrite) as staging:
            write_json(staging, self.with_tokens(), compact=True)

    def with_tokens(self) -> dict[str, Any]:
        """The sums and every token, the form of the file that `write` makes."""
        tokens = [_rounded(asdict(token)) for token in self.tokens]
        return self.to_json() | {"leading": self.leading, "per_token": tokens}


def measure_divergence(
    path: str,
    base: str,
    text: str,
    *,
    context: int = 512,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Divergence:
    """Compare any target with its base by llama-perplexity's rule, each in its own runtime.

    Args:
        path: the target, see `lrqat.runtimes.targets.open_target`.
        base: what it was made from, likewise; with a tokenizer of transformers.
        text: the evaluation text.
        context: tokens per window.
        limit: windows at most; None: all.
        progress: wraps the iterable of windows.

    Raises:
        UserError: as `open_target`, and for models with other vocabularies.
    """
    tokenizer = hub.load_tokenizer(base)
    with open_target(base, context=context) as first, open_target(path, context=context) as second:
        tokens = first.encode(text)
        _refuse_other_tokens(path, base, text, tokens, second)
        windows = Windows.cut(tokens, context, first.bos, limit, positions=second.positions)
        found = compare(first.logits, second.logits, windows, progress, guesses=_GUESSES)
    pieces = Pieces(tokenizer)
    scored = list(_tokens(found, windows, pieces))
    leading = [pieces.text(window[: windows.scored.start + 1]) for window in windows.tokens]
    counts = Counter(tokens)
    ids = [int(token) for window in windows.tokens for token in windows.targets(window)]
    labels = {
        "position": [_part(token.position, windows) for token in scored],
        "frequency": [_frequency(counts[token]) for token in ids],
        "kind": [(0, _kind(pieces[token])) for token in ids],
    }
    groups = {heading: _means(of, found.divergences) for heading, of in labels.items()}
    return Divergence(
        path, base, second.runtime, second.bytes, context, found, scored, leading, groups
    )


def _refuse_other_tokens(
    path: str, base: str, text: str, tokens: list[int], target: Target
) -> None:
    if target.encode(text) != tokens:
        raise DataError(
            f"{path} and {base} cut the text into different tokens, so their predictions cannot be "
            "compared; give as --base the model that it was made from"
        )


def _tokens(found: Comparison, windows: Windows, pieces: Pieces) -> Iterator[TokenDivergence]:
    first = windows.scored.start + 1  # what is scored is predicted by the position before
    index = 0
    for number, window in enumerate(windows.tokens):
        for offset, text in enumerate(pieces.texts(windows.targets(window))):
            says = [
                tuple((pieces[int(token)], float(p)) for token, p in zip(*both, strict=True))
                for both in zip(found.guesses[index], found.probabilities[index], strict=True)
            ]
            yield TokenDivergence(
                window=number,
                position=first + offset,
                token=text,
                kl=float(found.divergences[index]),
                base_nll=float(found.reference.nll[index]),
                nll=float(found.target.nll[index]),
                base_says=says[0],
                says=says[1],
            )
            index += 1


def _rounded(value: Any) -> Any:
    """Numbers with six digits: a file of a million tokens is read by people's editors too."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


_Label = tuple[int, str]  # where it stands among the others, and its name


def _part(position: int, windows: Windows) -> _Label:
    """The quarter of the scored positions that a position is in."""
    start, stop = windows.scored.start + 1, windows.context
    size = max(1, -(-(stop - start) // _PARTS))
    begin = start + (position - start) // size * size
    return begin, f"{begin} to {min(stop, begin + size) - 1}"


def _frequency(count: int) -> _Label:
    """How often a token is in the text."""
    for most in (1, 10, 100):
        if count <= most:
            return most, "once" if most == 1 else f"up to {most} times"
    return count, "more often"


def _kind(piece: str) -> str:
    """What a token's text is."""
    bare = piece.strip()
    if not bare:
        return "white space"
    if any(character.isdigit() for character in bare):
        return "number"
    if not any(character.isalpha() for character in bare):
        return "punctuation"
    return "beginning of a word" if piece[0].isspace() else "inside a word"


def _means(
    labels: Sequence[_Label], divergences: NDArray[np.float64]
) -> dict[str, tuple[float, int]]:
    named = np.array([name for _, name in labels])
    return {
        name: (float(divergences[named == name].mean()), int((named == name).sum()))
        for name in dict.fromkeys(name for _, name in sorted(labels))
    }
