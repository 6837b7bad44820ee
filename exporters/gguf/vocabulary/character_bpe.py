"""BPE over characters with byte fallback, llama.cpp's "llama": sentencepiece's BPE, as in Llama 2.

Spaces become U+2581, a space goes before the text, and neighbouring pieces merge wherever their
concatenation is in the vocabulary, the one with the highest score first. Hugging Face ranks pairs
instead of scoring their results. Both are the same when every way of cutting a piece into two
others is a merge and the merges that make a piece stand together in the list, which is how merges
are derived from a sentencepiece model; a list that is otherwise is refused.

Scores come from tokenizer.model if the folder has it, else they are minus the rank of the piece's
first merge. Source: src/llama-vocab.cpp `llm_tokenizer_spm_session`.
"""

import re
from typing import Any

from gguf import TokenType

from exporters.gguf.vocabulary.files import TokenizerFiles, steps_of
from exporters.gguf.vocabulary.table import Vocabulary, fill_table
from lrqat.errors import ExportRefusedError

_SPACE = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_LEADING_SPACE = (
    "before a text that starts with one space Hugging Face puts no second space, and llama.cpp "
    "does: such a text has one token more in llama.cpp"
)
# What llama.cpp's own converter gives to pieces that never come from merging.
_NEVER = -1000.0


def recognises(files: TokenizerFiles) -> bool:
    """Whether the files hold a BPE with byte fallback."""
    return files.model.get("type") == "BPE" and bool(files.model.get("byte_fallback"))


def load(files: TokenizerFiles, size: int, pre: str | None) -> Vocabulary:
    """Build the vocabulary; see `load_vocabulary` for arguments and errors."""
    if pre is not None:
        raise ExportRefusedError(f"--pre {pre} is for byte-level tokenizers; this one has none")
    add_space_prefix, notes = _space_prefix(files)
    pieces = {token_id: text for text, token_id in files.vocab.items()}
    types = {token_id: _type_of(text) for token_id, text in pieces.items()}
    missing = 256 - sum(kind == TokenType.BYTE for kind in types.values())
    if missing:
        raise ExportRefusedError(f"{missing} of the 256 byte tokens <0x00>..<0xFF> are missing")
    special_ids = files.special_ids()
    for token in files.added:
        pieces[token.token_id] = token.content
        kind = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
        types[token.token_id] = int(kind)
    if "unk" in special_ids:
        types[special_ids["unk"]] = int(TokenType.UNKNOWN)
    tokens, token_types = fill_table(pieces, types, size)
    scores = _scores(files, tokens, token_types)
    add_bos, add_eos = files.added_around()
    return Vocabulary(
        "llama",
        tokens,
        token_types,
        scores=scores,
        special_ids=special_ids,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=add_space_prefix,
        chat_template=files.chat_template(),
        notes=notes,
    )


def _type_of(text: str) -> int:
    return int(TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL)


def _space_prefix(files: TokenizerFiles) -> tuple[bool, list[str]]:
    """Whether a space goes before a text, and notes. Raises ExportRefusedError if unknown."""
    steps = [
        _canonical(step) for step in steps_of(files.tokenizer.get("normalizer"), "normalizers")
    ]
    steps += [
        _canonical(step) for step in steps_of(files.tokenizer.get("pre_tokenizer"), "pretokenizers")
    ]
    known: dict[tuple[Any, ...], tuple[bool, list[str]]] = {
        (("prepend",), ("replace",)): (True, []),
        (("replace",),): (False, []),
        (("metaspace", "always"),): (True, [_LEADING_SPACE]),
        (("metaspace", "first"),): (True, [_LEADING_SPACE]),
        (("metaspace", "never"),): (False, []),
    }
    found = known.get(tuple(steps))
    if found is None:
        raise ExportRefusedError(
            f"tokenizer.json prepares text by {steps}, which llama.cpp's sentencepiece tokenizer "
            "is not known to do; export ONNX, which ships tokenizer.json"
        )
    return found


def _canonical(step: dict[str, Any]) -> tuple[Any, ...]:
    kind = step.get("type")
    if kind == "Prepend" and step.get("prepend") == _SPACE:
        return ("prepend",)
    if (
        kind == "Replace"
        and step.get("content") == _SPACE
        and step.get("pattern") == {"String": " "}
    ):
        return ("replace",)
    if kind == "Metaspace" and step.get("replacement") == _SPACE and not step.get("split", True):
        return ("metaspace", str(step.get("prepend_scheme", "always")))
    return (kind, repr(step))


def _scores(files: TokenizerFiles, tokens: list[str], types: list[int]) -> list[float]:
    model = files.folder / "tokenizer.model"
    if model.is_file():
        return _sentencepiece_scores(str(model), tokens, types)
    return _merge_scores(files, tokens, types)


def _sentencepiece_scores(path: str, tokens: list[str], types: list[int]) -> list[float]:
    """Scores of tokenizer.model. Raises ExportRefusedError if its pieces are not `tokens`."""
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


def _merge_scores(files: TokenizerFiles, tokens: list[str], types: list[int]) -> list[float]:
    """Minus the rank of each piece's first merge. Raises ExportRefusedError if not equivalent."""
    pairs = files.merges
    results = [left + right for left, right in pairs]
    first: dict[str, int] = {}
    for rank, piece in enumerate(results):
        first.setdefault(piece, rank)
        if results[rank - 1] != piece and first[piece] != rank:
            raise ExportRefusedError(
                f"the merges that make {piece!r} do not stand together, so no score stands for "
                "them in GGUF; export ONNX, which ships tokenizer.json"
            )
    normal = {t for t, kind in zip(tokens, types, strict=True) if kind == TokenType.NORMAL}
    merges = set(pairs)
    for piece in normal:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in normal and right in normal and (left, right) not in merges:
                raise ExportRefusedError(
                    f"{left!r} + {right!r} is not a merge although {piece!r} is a token; llama.cpp "
                    "would merge them. Put the sentencepiece tokenizer.model beside tokenizer.json "
                    "if there is one, or export ONNX"
                )
    return [float(-first[t]) if t in first else (0.0 if t in normal else _NEVER) for t in tokens]
