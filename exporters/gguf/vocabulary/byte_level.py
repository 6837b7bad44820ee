"""Byte-level BPE, llama.cpp's "gpt2": GPT-2, Llama 3, Qwen, SmolLM and most models since.

Text is cut by a pre-tokenizer, each byte becomes one of 256 printable characters, and merges apply
by rank. Tokens are stored in that alphabet, added tokens as plain text.
"""

from gguf import TokenType

from exporters.gguf.vocabulary.files import TokenizerFiles, steps_of
from exporters.gguf.vocabulary.pre_tokenizers import find_pre_tokenizer
from exporters.gguf.vocabulary.table import Vocabulary, fill_table
from lrqat.errors import ExportRefusedError


def recognises(files: TokenizerFiles) -> bool:
    """Whether the files hold a byte-level BPE."""
    steps = steps_of(files.tokenizer.get("pre_tokenizer"), "pretokenizers")
    is_bytes = any(step.get("type") == "ByteLevel" for step in steps)
    return files.model.get("type") == "BPE" and is_bytes


def load(files: TokenizerFiles, size: int, pre: str | None) -> Vocabulary:
    """Build the vocabulary; see `load_vocabulary` for arguments and errors."""
    notes = _normalizer_notes(files)
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if files.model.get(key):
            raise ExportRefusedError(f"llama.cpp's byte-level BPE has no {key}")
    if pre is None:
        ignore_merges = bool(files.model.get("ignore_merges"))
        pre = find_pre_tokenizer(files.tokenizer.get("pre_tokenizer"), ignore_merges)
    merges = [f"{left} {right}" for left, right in files.merges]
    spaced = [merge for merge in merges if merge.count(" ") != 1]
    if not merges or spaced:
        raise ExportRefusedError(f"the merges do not fit GGUF: {spaced[0] if spaced else 'none'!r}")
    pieces = {token_id: text for text, token_id in files.vocab.items()}
    types = dict.fromkeys(pieces, int(TokenType.NORMAL))
    for token in files.added:
        pieces[token.token_id] = token.content
        kind = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
        types[token.token_id] = int(kind)
    tokens, token_types = fill_table(pieces, types, size)
    special_ids = files.special_ids()
    if "eos" not in special_ids:
        notes.append("no end-of-text token is named; llama.cpp will take token 11 for it")
    add_bos, add_eos = files.added_around()
    return Vocabulary(
        "gpt2",
        tokens,
        token_types,
        pre=pre,
        merges=merges,
        special_ids=special_ids,
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=files.chat_template(),
        notes=notes,
    )


def _normalizer_notes(files: TokenizerFiles) -> list[str]:
    """A note about Unicode normalisation. Raises ExportRefusedError for any other normaliser."""
    kinds = {
        step.get("type") for step in steps_of(files.tokenizer.get("normalizer"), "normalizers")
    }
    if kinds - {"NFC"}:
        raise ExportRefusedError(
            f"tokenizer.json normalises text with {sorted(map(str, kinds))}, which llama.cpp's "
            "byte-level BPE does not do; export ONNX, which ships tokenizer.json"
        )
    if not kinds:
        return []
    return ["the tokenizer brings text into NFC and llama.cpp does not: give it text in NFC"]
