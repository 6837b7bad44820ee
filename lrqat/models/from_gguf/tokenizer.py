"""The vocabulary of a GGUF file as tokenizer.json, tokenizer_config.json and a chat template.

    tokenizer.ggml.model   "gpt2": byte-level BPE, cut by the pre-tokenizer that `pre` names
                           "llama": sentencepiece's BPE, whose merges follow from the scores
    tokenizer.ggml.tokens, token_type, merges, scores, bos_token_id ..., tokenizer.chat_template

The exporter then reads what was written, and would have to write what the file says. A file does
not say how a text is normalized, which llama.cpp does not do.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType

from exporters.gguf.file.header import Header
from exporters.gguf.metadata import holds
from exporters.gguf.vocabulary import TokenizerFiles, load_vocabulary
from exporters.gguf.vocabulary.escaped_spaces import SPACE
from exporters.gguf.vocabulary.pre_tokenizer_table import ROWS, Step
from lrqat.atomic_files import write_json
from lrqat.errors import ModelError, UserError
from lrqat.models.from_gguf.configuration import read_generation

OTHERWISE = "give --tokenizer FOLDER, with the tokenizer files of the Hugging Face model"
_KEY = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_NORMAL = (int(TokenType.NORMAL), int(TokenType.BYTE))
_ADDED = (int(TokenType.CONTROL), int(TokenType.USER_DEFINED))
_LONGEST = 4096  # characters of a token or merge
# Byte-level pre-tokenizers before which llama.cpp puts BOS where the file does not say.
_WITH_BOS = ("llama-bpe", "tekken")
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator"}


class _Table:
    """The table of tokens."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path, self.metadata = path, header.metadata
        self.tokens = self._list("tokens", str)
        kinds = self.metadata.get(f"{_KEY}token_type")
        self.kinds = [_NORMAL[0]] * len(self.tokens)
        if isinstance(kinds, np.ndarray) and len(kinds) == len(self.tokens):
            self.kinds = [int(kind) for kind in kinds]

    def _list(self, key: str, kind: type) -> list[Any]:
        found = self.metadata.get(_KEY + key)
        if not isinstance(found, list) or not all(type(item) is kind for item in found):
            raise ModelError(f"{self.path} has no list {_KEY}{key}; {OTHERWISE}")
        longest = max(map(len, found), default=0)
        if longest > _LONGEST:
            raise ModelError(f"{self.path} has a token of {longest:,} characters; {OTHERWISE}")
        return found

    @property
    def merges(self) -> list[list[str]]:
        """Pairs, best first."""
        return [merge.split(" ", 1) for merge in self._list("merges", str)]

    @property
    def scores(self) -> list[float]:
        """Of every token."""
        found = self.metadata.get(f"{_KEY}scores")
        if not isinstance(found, np.ndarray) or len(found) != len(self.tokens):
            raise ModelError(f"{self.path} has no {_KEY}scores; {OTHERWISE}")
        return [float(score) for score in found]

    def flag(self, key: str, default: bool) -> bool:
        """A setting."""
        return bool(self.metadata.get(_KEY + key, default))

    def role(self, role: str) -> str | None:
        """The token of a role of tokenizer_config.json."""
        key = f"{_KEY}{_ROLES[role]}_token_id"
        found = self.metadata.get(key)
        if found is None:
            return None
        if type(found) is not int or not 0 <= found < len(self.tokens):
            raise ModelError(
                f"{self.path} says {key} = {found!r:.40}, which is none of its "
                f"{len(self.tokens):,} tokens; {OTHERWISE}"
            )
        return str(self.tokens[found])

    @property
    def vocab(self) -> dict[str, int]:
        """Token to id, without those that stand for nothing."""
        unused = int(TokenType.UNUSED)
        return {t: i for i, t in enumerate(self.tokens) if self.kinds[i] != unused}

    def added(self) -> list[dict[str, Any]]:
        """`added_tokens`: matched in a text before anything else."""
        rest = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        control, unknown = int(TokenType.CONTROL), int(TokenType.UNKNOWN)
        return [
            {"id": i, "content": token, "special": kind in (control, unknown), **rest}
            for i, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind in (*_ADDED, unknown)
        ]


def write_tokenizer(path: Path, header: Header, folder: Path, config: dict[str, Any]) -> None:
    """Write the tokenizer files of a GGUF file into `folder`.

    Args:
        path: of the file, for messages.
        header: its header.
        folder: where they go.
        config: config.json of the model.

    Raises:
        ModelError: a tokenizer that is not known to be the file's.
    """
    table = _Table(path, header)
    kind = str(header.metadata.get(f"{_KEY}model"))
    if kind not in _KINDS:
        raise ModelError(f"{path} has a tokenizer of the kind {kind:.40}; {OTHERWISE}")
    steps, starts_with_bos = _KINDS[kind](table)
    bos, eos = table.role("bos"), table.role("eos")
    post = _post_processor(
        table,
        bos if table.flag("add_bos_token", starts_with_bos) else None,
        eos if table.flag("add_eos_token", False) else None,
    )
    made = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": table.added()}
    write_json(folder / "tokenizer.json", made | steps | {"post_processor": post})
    settings: dict[str, Any]
    settings = {f"{role}_token": table.role(role) for role in _ROLES if table.role(role)}
    templates = _templates(header)
    if templates:  # not in a file of their own, whose line ends transformers would change
        settings["chat_template"] = templates
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            **settings,
        },
    )
    write_json(folder / "generation_config.json", read_generation(header))
    _compare(path, header, folder, config)


def _templates(header: Header) -> str | list[dict[str, str]]:
    """The chat template, or a list of several that have names."""
    said = {
        key.removeprefix(_TEMPLATE).removeprefix(".") or "default": value
        for key, value in header.metadata.items()
        if key == _TEMPLATE or key.startswith(f"{_TEMPLATE}.")
    }
    found = [{"name": name, "template": text} for name, text in said.items() if type(text) is str]
    return str(said["default"]) if list(said) == ["default"] else found


def _byte_level(table: _Table) -> tuple[dict[str, Any], bool]:
    """BPE of bytes: steps of tokenizer.json, and whether BOS is usual."""
    name = str(table.metadata.get(f"{_KEY}pre", "default"))
    row = next((row for row in ROWS if name in row.names), None)
    if row is None:
        raise ModelError(
            f"{table.path} cuts text by the pre-tokenizer {name:.40}, which is not known here; "
            f"{OTHERWISE}"
        )
    decoder = {
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True
    }  # fmt: skip
    return {
        "normalizer": None,
        "pre_tokenizer": _sequence("pretokenizers", [_step(step) for step in row.steps]),
        "decoder": decoder,
        "model": _bpe(table, table.merges, ignore_merges=row.ignore_merges),
    }, row.name in _WITH_BOS


def _step(step: Step) -> dict[str, Any]:
    """A step of the pre-tokenizer, from its form in the table."""
    kind, setting = step
    return {
        "bytes": {
            "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
            "use_regex": setting,
        },
        "digits": {"type": "Digits", "individual_digits": setting},
        "punctuation": {"type": "Punctuation", "behavior": setting},
        "split": {
            "type": "Split", "pattern": {"Regex": setting}, "behavior": "Isolated",
            "invert": False,
        },
    }[kind]  # fmt: skip


def _sentencepiece(table: _Table) -> tuple[dict[str, Any], bool]:
    """BPE of characters with byte fallback: steps of tokenizer.json, and whether BOS is usual."""
    has_prefix = table.flag("add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = [{"type": "Prepend", "prepend": SPACE}] if has_prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if has_prefix else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    return {
        "normalizer": _sequence("normalizers", [*prepend, replace]),
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(
            table, _merges_by_score(table), byte_fallback=True, fuse_unk=True,
            unk_token=table.role("unk"),
        ),
    }, True  # fmt: skip


def _merges_by_score(table: _Table) -> list[list[str]]:
    """Every two pieces that make a third, in the order of its score.

    Runs of one character may share a score; their merges come with the longest left part first, as
    sentencepiece takes them (`exporters.gguf.vocabulary.scores`).
    """
    usable = {
        token: score
        for token, kind, score in zip(table.tokens, table.kinds, table.scores, strict=True)
        if kind == _NORMAL[0] or (kind == _ADDED[1] and SPACE in token)
    }
    found = [
        (-score, "" if len(set(piece)) == 1 else piece, -cut, piece)
        for piece, score in usable.items()
        for cut in range(1, len(piece))
        if piece[:cut] in usable and piece[cut:] in usable
    ]
    found.sort(key=lambda merge: (*merge[:3], -len(merge[3])))
    return [[piece[:-minus], piece[-minus:]] for *_, minus, piece in found]


def _bpe(table: _Table, merges: list[list[str]], **settings: Any) -> dict[str, Any]:
    usual = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": False,
    }  # fmt: skip
    return usual | settings | {"vocab": table.vocab, "merges": merges}


def _sequence(key: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    return steps[0] if len(steps) == 1 else {"type": "Sequence", key: steps}


def _post_processor(table: _Table, before: str | None, after: str | None) -> dict[str, Any] | None:
    around = [token for token in (before, after) if token is not None]
    if not around:
        return None
    text = [{"Sequence": {"id": "A", "type_id": 0}}]
    first = [{"SpecialToken": {"id": before, "type_id": 0}}] if before is not None else []
    last = [{"SpecialToken": {"id": after, "type_id": 0}}] if after is not None else []
    special = {
        token: {"id": token, "ids": [table.tokens.index(token)], "tokens": [token]}
        for token in around
    }
    single = [*first, *text, *last]
    pair = [*single, *first, {"Sequence": {"id": "B", "type_id": 1}}, *last]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


_KINDS: dict[str, Callable[[_Table], tuple[dict[str, Any], bool]]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
}


def _compare(path: Path, header: Header, folder: Path, config: dict[str, Any]) -> None:
    """Raise ModelError unless the exporter would write the vocabulary that the file has."""
    pre = header.metadata.get(f"{_KEY}pre") if header.said(f"{_KEY}model") == "gpt2" else None
    try:
        files = TokenizerFiles.open(folder, config)
        expected = load_vocabulary(files, config["vocab_size"], pre).metadata()
    except UserError as error:
        raise ModelError(
            f"the tokenizer of {path} is not read here: {error}; {OTHERWISE}"
        ) from None
    # Scores are others of the same order; what a file leaves out, llama.cpp has a default for.
    free = (f"{_KEY}scores", f"{_KEY}pre")
    wrong = [
        entry.key
        for entry in expected
        if entry.key not in free
        and entry.key in header.metadata
        and not holds(entry, header.metadata[entry.key])
    ]
    if wrong:
        raise ModelError(
            f"the tokenizer of {path} is not read here: {wrong[0]} would be another; {OTHERWISE}"
        )
