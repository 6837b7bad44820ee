"""The tokenizer files of a checkpoint folder: tokenizer.json, tokenizer_config.json, the template.

tokenizer.json is what Hugging Face runs, so it decides; the configuration only names the special
tokens. All of it is checked for its shape before use: the files come from others.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporters.gguf.vocabulary.table import ROLES
from lrqat.errors import ExportRefusedError


@dataclass(frozen=True)
class AddedToken:
    """An entry of `added_tokens`: matched in the text before anything else."""

    token_id: int
    content: str
    special: bool
    normalized: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class TokenizerFiles:
    """The parsed files.

    Attributes:
        folder: where they are.
        listed: names of the files that belong there; None takes all.
        tokenizer: tokenizer.json.
        settings: tokenizer_config.json, or empty.
        config: config.json, whose bos_token_id and eos_token_id fill gaps, before `generation`.
        generation: generation_config.json, or empty; its eos_token_id lists all ends of text.
    """

    folder: Path
    tokenizer: dict[str, Any]
    settings: dict[str, Any]
    config: dict[str, Any]
    generation: dict[str, Any] = field(default_factory=dict)
    listed: Collection[str] | None = None

    @classmethod
    def open(
        cls, folder: Path, config: dict[str, Any], listed: Collection[str] | None = None
    ) -> "TokenizerFiles":
        """Read the files of `folder`. Raises ExportRefusedError if tokenizer.json is not usable."""
        names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
        found = {
            name: _read_object(folder / name)
            for name in names
            if (listed is None or name in listed) and (folder / name).is_file()
        }
        if "tokenizer.json" not in found:
            raise ExportRefusedError(
                f"{folder} has no tokenizer.json; save the tokenizer with transformers "
                "(AutoTokenizer.from_pretrained(...).save_pretrained(...)) and fuse again"
            )
        tokenizer, settings, generation = (found.get(name, {}) for name in names)
        files = cls(folder, tokenizer, settings, config, generation, listed)
        files._check()
        return files

    @property
    def model(self) -> dict[str, Any]:
        """The `model` entry of tokenizer.json."""
        return self.tokenizer["model"]

    @property
    def vocab(self) -> dict[str, int]:
        """Text to id, added tokens not included unless the model has them too."""
        found = self.model["vocab"]
        return found if isinstance(found, dict) else {text: i for i, (text, _) in enumerate(found)}

    @property
    def added(self) -> list[AddedToken]:
        """The added tokens."""
        return [
            AddedToken(entry["id"], entry["content"], *(bool(entry.get(flag)) for flag in _FLAGS))
            for entry in objects(self.tokenizer.get("added_tokens"), "added_tokens")
        ]

    @property
    def merges(self) -> list[tuple[str, str]]:
        """The merges, best first, from either of the two forms in use."""
        pairs = []
        merges = self.model.get("merges")
        if not isinstance(merges, list):
            raise ExportRefusedError("tokenizer.json has no list of merges")
        for merge in merges:
            parts = merge.split(" ") if isinstance(merge, str) else merge
            if not (isinstance(parts, list) and [type(p) for p in parts] == [str, str]):
                raise ExportRefusedError(f"tokenizer.json has a malformed merge {merge!r}")
            pairs.append((parts[0], parts[1]))
        return pairs

    def special_ids(self) -> dict[str, int]:
        """Ids by role (bos, eos, unk, sep, pad, mask), as far as the files name them."""
        ids = {**self.vocab, **{token.content: token.token_id for token in self.added}}
        found = {}
        for role in ROLES:
            named = self.settings.get(f"{role}_token")
            content = named.get("content") if isinstance(named, dict) else named
            key = f"{role}_token_id"
            fallback = self.config.get(key, self.generation.get(key))
            if isinstance(fallback, list):  # several ends of text: the first is the model's own
                fallback = fallback[0] if fallback else None
            token_id = ids.get(content, fallback) if isinstance(content, str) else fallback
            if isinstance(token_id, int) and not isinstance(token_id, bool) and token_id >= 0:
                found[role] = token_id
        return found

    def added_around(self) -> tuple[bool, bool]:
        """Whether the post-processor puts bos before a text, and eos after it.

        Raises:
            ExportRefusedError: it adds anything else, which llama.cpp cannot.
        """
        template = self._template()
        where = [i for i, part in enumerate(template) if "Sequence" in part]
        if len(where) != 1:
            raise ExportRefusedError("tokenizer.json's post-processor does not hold the text once")
        before = [_special_name(part) for part in template[: where[0]]]
        after = [_special_name(part) for part in template[where[0] + 1 :]]
        ids: dict[str | None, int] = {t.content: t.token_id for t in self.added}
        special = self.special_ids()
        allowed = (("bos", before), ("eos", after))
        if not all(_is_only(names, ids, special.get(role)) for role, names in allowed):
            raise ExportRefusedError(
                f"the tokenizer puts {before} before and {after} after a text; llama.cpp can add "
                "only bos and eos"
            )
        return bool(before), bool(after)

    def other_ends(self) -> list[int]:
        """Ids that end a text besides eos, by generation_config.json or else config.json."""
        named = self.generation.get("eos_token_id", self.config.get("eos_token_id"))
        listed = named if isinstance(named, list) else [named]
        known = {*self.vocab.values(), *(token.token_id for token in self.added)}
        ids = dict.fromkeys(i for i in listed if type(i) is int and i in known)
        return [token_id for token_id in ids if token_id != self.special_ids().get("eos")]

    def _template(self) -> list[dict[str, Any]]:
        processor = self.tokenizer.get("post_processor")
        steps = steps_of(processor, "processors")
        templates = [step for step in steps if step.get("type") == "TemplateProcessing"]
        others = {step.get("type") for step in steps} - {"TemplateProcessing", "ByteLevel"}
        if others or len(templates) > 1:
            raise ExportRefusedError(
                f"tokenizer.json's post-processor {sorted(map(str, others))} has no form in GGUF"
            )
        if not templates:
            return [{"Sequence": {}}]
        return objects(templates[0].get("single"), "post-processor")

    def _check(self) -> None:
        model = self.tokenizer.get("model")
        vocab = model.get("vocab") if isinstance(model, dict) else None
        if not (_is_by_id(vocab) or _is_by_score(vocab)):
            kind = model.get("type") if isinstance(model, dict) else None
            raise ExportRefusedError(
                f"tokenizer.json holds a {kind!r} model, and only BPE and Unigram have a form in "
                "GGUF here; export ONNX, which ships tokenizer.json"
            )
        for entry in objects(self.tokenizer.get("added_tokens"), "added_tokens"):
            if type(entry.get("id")) is not int or not isinstance(entry.get("content"), str):
                raise ExportRefusedError(f"tokenizer.json has a malformed added token {entry!r}")


_LARGEST_SCORE = 1e30  # far from float32's limit; NaN is not less than it either
_FLAGS = ("special", "normalized", "single_word", "lstrip", "rstrip")


def _is_by_id(vocab: Any) -> bool:
    return isinstance(vocab, dict) and all(type(token_id) is int for token_id in vocab.values())


def _is_by_score(vocab: Any) -> bool:
    """Whether it is Unigram's list of text and score."""
    return isinstance(vocab, list) and all(
        isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and type(entry[1]) in (int, float)
        and abs(entry[1]) < _LARGEST_SCORE
        for entry in vocab
    )


def objects(value: Any, what: str) -> list[dict[str, Any]]:
    """`value` if it is a list of objects, an empty list for null; else ExportRefusedError."""
    found = [] if value is None else value
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise ExportRefusedError(f"tokenizer.json has malformed {what}: {str(value)[:80]}")
    return found


def steps_of(step: Any, key: str) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or post-processor; `key` is its Sequence's list."""
    if step is None:
        return []
    (single,) = objects([step], key)
    if not isinstance(single.get("type"), str):
        raise ExportRefusedError(f"tokenizer.json has a step of no type in {key}")
    if single["type"] != "Sequence":
        return [single]
    return [each for part in objects(single.get(key), key) for each in steps_of(part, key)]


def _is_only(names: list[str | None], ids: dict[str | None, int], token_id: int | None) -> bool:
    """Whether `names` is empty or just the token `token_id`."""
    return not names or (token_id is not None and [ids.get(name) for name in names] == [token_id])


def _special_name(part: dict[str, Any]) -> str | None:
    special = part.get("SpecialToken")
    return special.get("id") if isinstance(special, dict) else None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportRefusedError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ExportRefusedError(f"{path} holds no JSON object")
    return value
