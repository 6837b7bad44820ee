"""The table of tokens that a GGUF file holds, and how it is written as metadata.

Source: src/llama-vocab.cpp `llama_vocab::impl::load`.
"""

from collections import Counter
from dataclasses import dataclass, field

from gguf import GGUFValueType, TokenType

from exporters.gguf.file import key_values as kv
from exporters.gguf.file.key_values import KeyValue
from exporters.gguf.vocabulary.chat_templates import chat_template_metadata
from lrqat.errors import ExportRefusedError


@dataclass
class Vocabulary:
    """Everything llama.cpp needs to turn text into the model's tokens and back.

    Attributes:
        model: llama.cpp's tokenizer: "gpt2" or "llama".
        tokens: text of every token, by id.
        types: a `gguf.TokenType` for each.
        pre: name of the pre-tokenizer ("gpt2" only).
        merges: pairs "left right", best first ("gpt2" only).
        scores: priority of each token, higher is merged first ("llama" only).
        special_ids: ids by role: bos, eos, unk, pad, eot ...
        add_bos: whether a text starts with bos.
        add_eos: whether a text ends with eos.
        add_space_prefix: whether a space goes before a text ("llama" only).
        templates: Jinja sources of chat templates by name.
        notes: what a user should know, one sentence each.
    """

    model: str
    tokens: list[str]
    types: list[int]
    pre: str = "default"
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    special_ids: dict[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool | None = None
    templates: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def metadata(self) -> list[KeyValue]:
        """The `tokenizer.*` entries, in a fixed order."""
        prefix = "tokenizer.ggml."
        entries = [
            kv.text(f"{prefix}model", self.model),
            kv.text(f"{prefix}pre", self.pre),
            kv.array(f"{prefix}tokens", self.tokens, GGUFValueType.STRING),
            kv.array(f"{prefix}token_type", self.types, GGUFValueType.INT32),
        ]
        if self.scores:
            entries.append(kv.array(f"{prefix}scores", self.scores, GGUFValueType.FLOAT32))
        if self.merges:
            entries.append(kv.array(f"{prefix}merges", self.merges, GGUFValueType.STRING))
        for role, token_id in sorted(self.special_ids.items()):
            entries.append(kv.count(f"{prefix}{_ROLES[role]}_token_id", token_id))
        entries.append(kv.flag(f"{prefix}add_bos_token", self.add_bos))
        entries.append(kv.flag(f"{prefix}add_eos_token", self.add_eos))
        if self.add_space_prefix is not None:
            entries.append(kv.flag(f"{prefix}add_space_prefix", self.add_space_prefix))
        return entries + chat_template_metadata(self.templates)


# llama.cpp's key of each role of tokenizer_config.json: bos_token is bos_token_id, but ...
_ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",  # spelt so in src/llama-arch.cpp
    "pad": "padding",
    "mask": "mask",
}
ROLES = tuple(_ROLES)  # those that tokenizer_config.json names
_ROLES |= {"eot": "eot", "eom": "eom"}  # further ends of text


def fill_table(
    pieces: dict[int, str], types: dict[int, int], size: int
) -> tuple[list[str], list[int]]:
    """Lists of text and type for ids 0..size-1; ids without a piece become unused ones.

    Raises:
        ExportRefusedError: an id outside the embedding, two ids with the same text (llama.cpp
            aborts on that), an empty text, or one that is not valid Unicode.
    """
    outside = [token_id for token_id in pieces if not 0 <= token_id < size]
    if outside:
        raise ExportRefusedError(
            f"the tokenizer has {len(outside)} ids outside the embedding's {size} rows, the "
            f"largest {max(outside)}; resize the embedding, or use the model's own tokenizer"
        )
    tokens = [pieces.get(token_id, f"[PAD{token_id}]") for token_id in range(size)]
    doubled = [token for token, times in Counter(tokens).items() if times > 1]
    if doubled:
        raise ExportRefusedError(
            f"{len(doubled)} token texts belong to several ids, the first {doubled[0]!r}; "
            "llama.cpp needs them distinct"
        )
    for token_id, token in enumerate(tokens):
        if not token or "\0" in token or not _is_unicode(token):
            raise ExportRefusedError(f"token {token_id} has the text {token!r}: not valid Unicode")
    return tokens, [types.get(token_id, TokenType.UNUSED) for token_id in range(size)]


def _is_unicode(token: str) -> bool:
    try:
        token.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
