"""Scores of the pieces of a sentencepiece BPE, and the proof that they say what the merges say."""

import itertools
from collections import Counter

from gguf import TokenType

from exporters.gguf.vocabulary.escaped_spaces import SPACE
from exporters.gguf.vocabulary.files import TokenizerFiles
from lrqat.errors import ExportRefusedError

Pair = tuple[str, str]

# What llama.cpp's own converter gives to pieces that never come from merging.
_NEVER = -1000.0


class InexactScoresError(ExportRefusedError):
    """Merges that no scores stand for."""


def piece_scores(files: TokenizerFiles, tokens: list[str], types: list[int]) -> list[float]:
    """A score for every token: of tokenizer.model, or minus the rank of its first merge.

    Args:
        files: the tokenizer's.
        tokens: text of every token, by id.
        types: its `gguf.TokenType`.

    Raises:
        InexactScoresError: merging by score would give other tokens than the merges.
        ExportRefusedError: tokenizer.model cannot be read, or is another vocabulary.
    """
    pairs = files.merges
    made = [left + right for left, right in pairs]
    merged = {text for text, kind in zip(tokens, types, strict=True) if _is_merged(text, kind)}
    model = files.folder / "tokenizer.model"
    if model.is_file():
        scores = _sentencepiece_scores(str(model), tokens, types)
    else:
        first: dict[str, int] = {}
        for rank, piece in enumerate(made):
            first.setdefault(piece, rank)
        scores = [
            float(-first[t]) if t in first else (0.0 if t in merged else _NEVER) for t in tokens
        ]
    score_of = dict(zip(tokens, scores, strict=True))
    _check_order([pair for pair in pairs if "".join(pair) in merged], score_of)
    _check_pairs(set(pairs), merged)
    return scores


def _is_merged(text: str, kind: int) -> bool:
    """Whether merging may make the token: user-defined ones are found before, but for spaces."""
    return kind == TokenType.NORMAL or (kind == TokenType.USER_DEFINED and SPACE in text)


def _sentencepiece_scores(path: str, tokens: list[str], types: list[int]) -> list[float]:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromFile(path)
    except (OSError, RuntimeError) as error:
        raise ExportRefusedError(f"{path} cannot be read ({error}); delete or restore it") from None
    scores = [_NEVER] * len(tokens)
    for token_id in range(min(processor.vocab_size(), len(tokens))):
        piece = processor.IdToPiece(token_id)
        if types[token_id] == TokenType.NORMAL and piece != tokens[token_id]:
            raise ExportRefusedError(
                f"{path} and tokenizer.json disagree on token {token_id}: {piece!r} and "
                f"{tokens[token_id]!r}; delete the one that the model was not trained with"
            )
        scores[token_id] = processor.GetScore(token_id)
    return scores


def _check_order(pairs: list[Pair], scores: dict[str, float]) -> None:
    """Merges must come in falling order of the score of what they make, runs counting as one."""
    made = [left + right for left, right in pairs]
    runs = _interleaved(made)
    _check_runs([pair for pair in pairs if "".join(pair) in runs], runs)
    stretches = [
        (is_run, [scores[piece] for piece in group])
        for (is_run, _), group in itertools.groupby(
            made, key=lambda piece: (piece in runs, "" if piece in runs else piece)
        )
    ]
    in_order = all(
        min(before) > max(after) for (_, before), (_, after) in itertools.pairwise(stretches)
    )
    if not in_order or sum(is_run for is_run, _ in stretches) > 1:
        raise InexactScoresError(
            "the merges are not in the order of the scores of what they make, so no scores stand "
            "for them in GGUF; export ONNX, which ships tokenizer.json"
        )


def _interleaved(made: list[str]) -> set[str]:
    """Pieces whose merges do not stand together, and the shortest run of the same character."""
    first, count = {piece: rank for rank, piece in reversed(list(enumerate(made)))}, Counter(made)
    found = {piece for rank, piece in enumerate(made) if rank - first[piece] >= count[piece]}
    return found | ({2 * piece[0] for piece in found} & first.keys())


def _check_runs(pairs: list[Pair], runs: set[str]) -> None:
    """Interleaved merges must make all runs of a character, the longest left part first.

    Then both runtimes take the leftmost run, let it grow to the longest there is, and go on behind
    it, whatever else they do: the scores among runs do not matter. sentencepiece gives one score to
    all runs of spaces, and Hugging Face orders their merges so.
    """
    for character in {piece[0] for piece in runs}:
        own = {piece for piece in runs if piece[0] == character}
        lengths = [(len(left), len(right)) for left, right in pairs if left[0] == character]
        are_runs = own == {character * n for n in range(2, len(own) + 2)}
        if not are_runs or lengths != sorted(lengths, reverse=True):
            raise InexactScoresError(
                f"the merges that make tokens of {character!r} do not stand together, so no scores "
                "stand for them in GGUF; export ONNX, which ships tokenizer.json"
            )


def _check_pairs(merges: set[Pair], merged: set[str]) -> None:
    """Every two pieces that make a third must be a merge: llama.cpp would merge them."""
    for piece in merged:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in merged and right in merged and (left, right) not in merges:
                raise InexactScoresError(
                    f"{left!r} + {right!r} is not a merge although {piece!r} is a token; llama.cpp "
                    "would merge them. Put the sentencepiece tokenizer.model beside tokenizer.json "
                    "if there is one, or export ONNX"
                )
