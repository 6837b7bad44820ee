"""BPE over characters with byte fallback: sentencepiece's BPE, as in Llama 2, Mistral and Gemma.

llama.cpp runs it in two ways.

"llama" merges neighbouring pieces wherever their concatenation is in the vocabulary, the one with
the highest score first. Hugging Face ranks pairs instead of scoring their results. Both are the
same when every way of cutting a piece into two others is a merge and merges come in the order of
the score of what they make, which is how merges are derived from a sentencepiece model. Scores come
from tokenizer.model if the folder has it, else they are minus the rank of the piece's first merge.

"gpt2" with the pre-tokenizer "sarvam-moe" applies merges by rank to characters, as Hugging Face
does, but puts no space before a text and never merges line ends with anything else. It is taken for
merges that scores cannot say, such as Gemma 4's.

Source: src/llama-vocab.cpp `llm_tokenizer_spm_session`, `llm_tokenizer_bpe_session`.
"""

import re

from gguf import TokenType

from exporters.gguf.vocabulary.added_tokens import place_added_tokens
from exporters.gguf.vocabulary.bpe import check_bpe, merge_strings
from exporters.gguf.vocabulary.chat_templates import read_chat_templates
from exporters.gguf.vocabulary.escaped_spaces import SPACE, space_prefix
from exporters.gguf.vocabulary.files import AddedToken, TokenizerFiles, steps_of
from exporters.gguf.vocabulary.scores import InexactScoresError, piece_scores
from exporters.gguf.vocabulary.special_ids import special_ids
from exporters.gguf.vocabulary.table import Vocabulary, fill_table
from lrqat.errors import ExportRefusedError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_BY_RANK = "sarvam-moe"


def recognises(files: TokenizerFiles) -> bool:
    """Whether the files hold a BPE with byte fallback."""
    return files.model.get("type") == "BPE" and bool(files.model.get("byte_fallback"))


def load(files: TokenizerFiles, size: int, pre: str | None) -> Vocabulary:
    """Build the vocabulary; see `load_vocabulary` for arguments and errors."""
    if pre is not None:
        raise ExportRefusedError(f"--pre {pre} is for byte-level tokenizers; this one has none")
    check_bpe(files)
    if files.model.get("ignore_merges"):
        raise ExportRefusedError("llama.cpp's sentencepiece BPE has no ignore_merges; export ONNX")
    add_space_prefix, notes = space_prefix(files)
    pieces = {token_id: text for text, token_id in files.vocab.items()}
    types = {token_id: _type_of(text) for token_id, text in pieces.items()}
    missing = 256 - sum(kind == TokenType.BYTE for kind in types.values())
    if missing:
        raise ExportRefusedError(f"{missing} of the 256 byte tokens <0x00>..<0xFF> are missing")
    notes += place_added_tokens(files, pieces, types, lambda token: _sought(files, token))
    ids, id_notes = special_ids(files)
    if "unk" in ids:
        types[ids["unk"]] = int(TokenType.UNKNOWN)
    tokens, token_types = fill_table(pieces, types, size)
    add_bos, add_eos = files.added_around()
    made = Vocabulary(
        "llama",
        tokens,
        token_types,
        special_ids=ids,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=add_space_prefix,
        templates=read_chat_templates(files.folder, files.settings, files.listed),
        notes=[*notes, *id_notes],
    )
    try:
        made.scores = piece_scores(files, tokens, token_types)
    except InexactScoresError as error:
        _merge_by_rank(made, files, error)
    return made


def _type_of(text: str) -> int:
    return int(TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL)


def _sought(files: TokenizerFiles, token: AddedToken) -> str:
    """The text that an added token is matched in a raw text by.

    A `normalized` one is matched after spaces were written as U+2581, and llama.cpp before.
    """
    if token.special or not token.normalized:
        return token.content
    if files.tokenizer.get("normalizer") is None:  # Metaspace comes after the added tokens
        return token.content
    steps = steps_of(files.tokenizer.get("normalizer"), "normalizers")
    if any(step.get("type") == "Prepend" for step in steps):
        raise ExportRefusedError(
            f"the added token {token.content!r} is `normalized`: Hugging Face finds it after a "
            "space alone, llama.cpp anywhere. Add it again with AddedToken(..., normalized=False)"
        )
    return token.content.replace(SPACE, " ")


def _merge_by_rank(made: Vocabulary, files: TokenizerFiles, reason: InexactScoresError) -> None:
    """Turn `made` into llama.cpp's other way. Raises ExportRefusedError if that differs too."""
    if made.add_space_prefix:
        raise reason
    broken = next((text for text in files.vocab if "\n" in text and text.strip("\n")), None)
    if broken is not None:
        raise ExportRefusedError(
            f"{reason}. Nor can llama.cpp apply the merges by rank, since it cuts at line ends and "
            f"{broken!r} is a token"
        )
    made.model, made.pre, made.merges = "gpt2", _BY_RANK, merge_strings(files)
    made.add_space_prefix = None
