"""YAML of others, as a tree of texts: no object of Python is made of any tag.

Nothing is nested but what the caller asks for, so an alias that stands for thousands is looked at
once; and a key that occurs twice is refused, where a parser would take the last.
"""

from pathlib import Path
from typing import Any

import yaml

from lrqat.foreign_files import ForeignFileError, read_bytes

_MOST_BYTES = 1 << 16
_NULL = "tag:yaml.org,2002:null"


def read_text(path: Path, remedy: str) -> str:
    """The text of a file that should be YAML.

    Args:
        path: the file.
        remedy: what the message ends with where it is no text.

    Raises:
        ForeignFileError: it cannot be read, has more than 64 KiB, or is not UTF-8.
    """
    try:
        return read_bytes(path, _MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ForeignFileError(f"{path} is not UTF-8 text ({error}); {remedy}") from None


def written(document: dict[str, Any]) -> str:
    """A document in the order that it has, every value on its line."""
    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1 << 16))


def tree(text: str) -> yaml.Node | None:
    """The root of a document, or None of an empty one. Raises ValueError if it is none."""
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"it is no YAML: {error.problem!s:.300}{line}") from None
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"it is no YAML: {reason:.300}") from None


def mapping(node: yaml.Node | None, what: str) -> dict[str, yaml.Node]:
    """Keys and values of a mapping. Raises ValueError if it is none, or has a key twice."""
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{what} must be a mapping, key: value")
    made: dict[str, yaml.Node] = {}
    for key, value in node.value:
        text = scalar(key, f"a key of {what}")
        if text is None:
            raise ValueError(f"a key of {what} is empty")
        if text in made:
            raise ValueError(f"{text!r:.200} occurs twice in {what}; keep the last one")
        made[text] = value
    return made


def scalar(node: yaml.Node, what: str) -> str | None:
    """A text, number or word as it is written; None: it is empty. Raises ValueError for others."""
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError(f"{what} must be one word or text")
    return None if node.tag == _NULL else str(node.value)


def texts(node: yaml.Node, what: str) -> list[str]:
    """The texts of a list, or the one that stands alone. Raises ValueError for anything else."""
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    found = [scalar(item, f"an entry of {what}") for item in items]
    if None in found:
        raise ValueError(f"an entry of {what} is empty")
    return [text for text in found if text is not None]
