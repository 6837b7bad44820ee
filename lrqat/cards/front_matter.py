"""The YAML at the head of a model card, from which the Hugging Face hub knows a model.

    ---
    license: apache-2.0
    base_model: owner/name
    ---
    the text of the card

A card that comes with somebody's model is read as a tree of texts: no object of Python is made of
any tag, `no` is Norwegian, and what cannot be read says nothing. Source of the keys: the hub's
documentation of model cards (hub-docs, modelcard.md).
"""

from collections.abc import Mapping
from typing import Any

import yaml

_LINE = "---"
_MOST_CHARACTERS = 1 << 16
_MOST_TEXTS, _MOST_LENGTH = 64, 300

Texts = dict[str, list[str]]


def read_front_matter(card: str) -> Texts:
    """The keys of a card that say one text or a list of them; empty if it has none.

    Args:
        card: the text of a README.md, which may be anybody's.
    """
    head, *rest = card.removeprefix("\ufeff")[:_MOST_CHARACTERS].split("\n")
    lines = [line.rstrip("\r") for line in rest]
    if head.rstrip() != _LINE or _LINE not in lines:
        return {}
    try:
        found = yaml.load("\n".join(lines[: lines.index(_LINE)]), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    read = {key: _texts(value) for key, value in found.items() if isinstance(key, str)}
    return {key: texts for key, texts in read.items() if texts}


def _texts(value: Any) -> list[str]:
    several = value if isinstance(value, list) else [value]
    texts = [each.strip() for each in several[:_MOST_TEXTS] if isinstance(each, str)]
    return [text for text in texts if 0 < len(text) <= _MOST_LENGTH and text.isprintable()]


def write_front_matter(values: Mapping[str, Any]) -> str:
    """Values as the head of a card, in their order; what is empty is left out."""
    said = {key: value for key, value in values.items() if value}
    return f"{_LINE}\n{yaml.safe_dump(said, sort_keys=False, allow_unicode=True)}{_LINE}\n"
