"""Byte-level BPE, llama.cpp's "gpt2": GPT-2, Llama 3, Qwen, SmolLM and most models since.

Text is cut by a pre-tokenizer, each byte becomes one of 256 printable characters, and merges apply
by rank. Tokens are stored in that alphabet, added tokens as plain text.
"""

from gguf import TokenType
from tokenizers.pre_tokenizers import ByteLevel

from exporters.gguf.vocabulary.added_tokens import place_added_tokens
from exporters.gguf.vocabulary.bpe import check_bpe, merge_strings, normalizer_notes
from exporters.gguf.vocabulary.chat_templates import read_chat_templates
from exporters.gguf.vocabulary.files import TokenizerFiles, steps_of
from exporters.gguf.vocabulary.pre_tokenizers import choose_pre_tokenizer
from exporters.gguf.vocabulary.special_ids import special_ids
from exporters.gguf.vocabulary.table import Vocabulary, fill_table
from lrqat.errors import ExportRefusedError


def recognises(files: TokenizerFiles) -> bool:
    """Whether the files hold a byte-level BPE."""
    steps = steps_of(files.tokenizer.get("pre_tokenizer"), "pretokenizers")
    is_bytes = any(step.get("type") == "ByteLevel" for step in steps)
    return files.model.get("type") == "BPE" and is_bytes


def load(files: TokenizerFiles, size: int, pre: str | None) -> Vocabulary:
    """Build the vocabulary; see `load_vocabulary` for arguments and errors."""
    check_bpe(files)
    _check_alphabet(files)
    steps = steps_of(files.tokenizer.get("normalizer"), "normalizers")
    notes = normalizer_notes({step.get("type") for step in steps})
    merges = merge_strings(files)
    name, pre_notes = choose_pre_tokenizer(files, pre)
    pieces = {token_id: text for text, token_id in files.vocab.items()}
    types = dict.fromkeys(pieces, int(TokenType.NORMAL))
    added_notes = place_added_tokens(files, pieces, types)
    tokens, token_types = fill_table(pieces, types, size)
    ids, id_notes = special_ids(files)
    add_bos, add_eos = files.added_around()
    return Vocabulary(
        "gpt2",
        tokens,
        token_types,
        pre=name,
        merges=merges,
        special_ids=ids,
        add_bos=add_bos,
        add_eos=add_eos,
        templates=read_chat_templates(files.folder, files.settings, files.listed),
        notes=[*notes, *pre_notes, *added_notes, *id_notes],
    )


def _check_alphabet(files: TokenizerFiles) -> None:
    """Bytes without a token are left out by both, unless Hugging Face puts its unknown token."""
    if files.model.get("byte_fallback"):
        raise ExportRefusedError("llama.cpp's byte-level BPE has no byte_fallback; export ONNX")
    missing = [byte for byte in ByteLevel.alphabet() if byte not in files.vocab]
    if missing and files.model.get("unk_token"):
        raise ExportRefusedError(
            f"{len(missing)} of the 256 bytes have no token; Hugging Face puts "
            f"{files.model['unk_token']!r} for them and llama.cpp nothing. Train the tokenizer "
            "with initial_alphabet=ByteLevel.alphabet(), or export ONNX"
        )
