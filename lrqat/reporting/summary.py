"""What a reader wants to know first: a row for every model, and what the report has not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lrqat.reporting.material import Material, Model, Proof, TokenKL, owner


@dataclass(frozen=True)
class Row:
    """A model with everything that was given about it.

    Attributes:
        label: its name in the report, its own.
        kind: what it is.
        base: what it was made from.
        grids: "q4_0 83 %, q8_0 17 %".
        bytes: of its files; 0 where there are none.
        bits_per_weight: scales included, or None.
        perplexity: or None.
        base_perplexity: on the same text, or None.
        kl: from the base, nats, or None.
        same_top: share of tokens with the base's most likely token, or None.
        measured_in: what ran it.
        verdicts: L0, L1, L2 of the proof; empty where there is none.
        model: None where only measurements were given.
        tokens: its KL token by token, or None.
        proof: of an exported file, or None.
    """

    label: str
    kind: str
    base: str
    grids: str
    bytes: int
    bits_per_weight: float | None
    perplexity: float | None
    base_perplexity: float | None
    kl: float | None
    same_top: float | None
    measured_in: str
    verdicts: dict[str, bool]
    model: Model | None
    tokens: TokenKL | None
    proof: Proof | None

    @property
    def passed(self) -> bool:
        """Whether all levels of the proof hold."""
        return bool(self.verdicts) and all(self.verdicts.values())


def rows_of(material: Material) -> list[Row]:
    """A row for every model, then for measurements and proofs of others, in the given order."""
    models = {model.path: model for model in material.models}
    places = list(models)
    tokens = {owner(found.path, places): found for found in material.tokens}
    proofs = {owner(found.path, places): found for found in material.proofs}
    paths = list(dict.fromkeys((*models, *tokens, *proofs)))
    return [
        _row(label, models.get(path), tokens.get(path), proofs.get(path))
        for path, label in zip(paths, _labels(paths), strict=True)
    ]


def _labels(paths: Sequence[str]) -> list[str]:
    """The last part of each path, and as many before it as tell it from the others."""
    parts = [Path(path).parts or (path,) for path in paths]
    counts = [1] * len(parts)
    for depth in range(1, max((len(each) for each in parts), default=0)):
        shown = ["/".join(each[-n:]) for each, n in zip(parts, counts, strict=True)]
        for i, each in enumerate(shown):
            if shown.count(each) > 1:
                counts[i] = min(depth + 1, len(parts[i]))
    return ["/".join(each[-n:]) for each, n in zip(parts, counts, strict=True)]


def _row(label: str, model: Model | None, tokens: TokenKL | None, proof: Proof | None) -> Row:
    figures = _figures(model, tokens, proof)
    sizes = (part.bytes for part in (model, tokens, proof) if part and part.bytes)
    return Row(
        label=label,
        kind=model.kind if model else "file",
        base=(model.base if model else "") or (Path(tokens.base).name if tokens else ""),
        grids=", ".join(f"{name} {share:.0%}" for name, share in _grids(model)),
        bytes=next(sizes, 0),
        bits_per_weight=model.bits_per_weight if model else None,
        perplexity=figures.perplexity,
        base_perplexity=figures.base_perplexity,
        kl=figures.kl,
        same_top=figures.same_top,
        measured_in=figures.measured_in,
        verdicts=proof.verdicts if proof else {},
        model=model,
        tokens=tokens,
        proof=proof,
    )


def _grids(model: Model | None) -> Iterator[tuple[str, float]]:
    """Those of some size: the norms of a model are in float32 and not worth a word."""
    return ((n, s) for n, s in (model.grids if model else {}).items() if s >= 0.005)


@dataclass(frozen=True)
class _Figures:
    perplexity: float | None = None
    base_perplexity: float | None = None
    kl: float | None = None
    same_top: float | None = None
    measured_in: str = ""


def _figures(model: Model | None, tokens: TokenKL | None, proof: Proof | None) -> _Figures:
    """The figures of the measurement that says most; they are never mixed."""
    if tokens:
        return _Figures(
            tokens.perplexity, tokens.base_perplexity, tokens.kl, tokens.same_top, tokens.runtime
        )
    training = model.training if model else None
    if training and "after" in training.perplexity:
        return _Figures(
            training.perplexity["after"],
            training.perplexity.get("before"),
            training.kl.get("after"),
            training.same_top,
            "PyTorch, when training ended",
        )
    if proof:  # its KL is from the reference, not from the base
        return _Figures(perplexity=proof.perplexity, measured_in=proof.runtime)
    recorded = model.perplexity if model else None
    return _Figures(perplexity=recorded, measured_in="PyTorch" if recorded else "")


@dataclass(frozen=True)
class Absent:
    """Something that the report has not: what, and how to get it."""

    what: str
    how: str


def absent(material: Material, rows: Sequence[Row]) -> Iterator[Absent]:
    """What was not given, with the command that makes it."""
    if not any(model.training for model in material.models):
        yield Absent(
            "The course of the training", "give the folder that lrqat train wrote (--output)"
        )
    trained = [model for model in material.models if model.layers and model.training]
    if trained and not any(layer.error for model in trained for layer in model.layers):
        yield Absent("The error of every weight", "lrqat report … --base MODEL")
    if not any(layer.sensitivity for model in trained for layer in model.layers):
        yield Absent(
            "How sensitive every weight is",
            "train under a budget, which measures it: lrqat train … --target-size SIZE",
        )
    if not all(row.tokens for row in rows) or not rows:
        missing = ", ".join(row.label for row in rows if not row.tokens)
        yield Absent(
            f"KL of every token{f' of {missing}' if missing else ''}",
            "lrqat report … --base MODEL --data TEXT, or once for all: lrqat evaluate FILE --base "
            "MODEL --data TEXT --tokens tokens.json, and give that file",
        )
    if not material.proofs:
        yield Absent(
            "The proof that exported files are exact",
            "lrqat parity RUN FILE … --data TEXT --json > parity.json, and give that file",
        )
    if not material.frontiers:
        yield Absent(
            "What a file of another size would lose",
            "lrqat plan MODEL --data TEXT --frontier --json > frontier.json, and give that file",
        )
