"""The tokens at which a runtime stops: those of the tokenizer and of generation_config.json.

A chat fine-tune often says the end of a turn in only one of them. A runtime that knows only the
other writes on and on.
"""

import json
from pathlib import Path
from typing import Any


def end_tokens(folder: Path, config: dict[str, Any]) -> list[int]:
    """Ids that end a text, each once: generation_config.json's (or else `config`'s) first.

    Args:
        folder: with generation_config.json, tokenizer_config.json and tokenizer.json, or fewer.
        config: of the text model; fills the gap where there is no generation_config.json.
    """
    generation = _read_object(folder / "generation_config.json")
    named = generation.get("eos_token_id", config.get("eos_token_id"))
    ids = [*(named if isinstance(named, list) else [named]), _of_tokenizer(folder)]
    return list(dict.fromkeys(i for i in ids if type(i) is int and i >= 0))


def one_or_list(ids: list[int]) -> int | list[int]:
    """`ids` as genai_config.json has them: one as a number, several as a list."""
    return ids[0] if len(ids) == 1 else ids


def _of_tokenizer(folder: Path) -> int | None:
    """The id of the tokenizer's own eos token."""
    settings = _read_object(folder / "tokenizer_config.json")
    named = settings.get("eos_token")
    text = named.get("content") if isinstance(named, dict) else named
    if not isinstance(text, str):
        return None
    tokenizer = _read_object(folder / "tokenizer.json")
    for token in tokenizer.get("added_tokens") or []:
        if isinstance(token, dict) and token.get("content") == text:
            return token.get("id")
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        if isinstance(token, dict) and token.get("content") == text and number.isdecimal():
            return int(number)
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    return vocab.get(text) if isinstance(vocab, dict) else None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
