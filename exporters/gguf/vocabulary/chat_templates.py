"""Chat templates: the default one, and those that have a name.

transformers keeps them in chat_template.jinja and additional_chat_templates/NAME.jinja, or in
tokenizer_config.json as a string or a list of named ones; the files win. llama.cpp finds the named
ones under `tokenizer.chat_template.NAME`. Source: gguf-py's `add_chat_template`.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

from exporters.gguf.file import key_values as kv
from exporters.gguf.file.key_values import KeyValue
from lrqat.errors import ExportRefusedError
from lrqat.foreign_files import read_bytes

_KEY = "tokenizer.chat_template"
_NAME = re.compile(r"[a-z0-9_]+", re.IGNORECASE)


def read_chat_templates(
    folder: Path, settings: dict[str, Any], listed: Collection[str] | None = None
) -> dict[str, str]:
    """Jinja sources by name; the one to use by itself is "default".

    Args:
        folder: the checkpoint's.
        settings: tokenizer_config.json.
        listed: names of the files that belong there; None takes all.

    Raises:
        ExportRefusedError: a template that is not valid Unicode.
    """
    found = settings.get("chat_template")
    named = found if isinstance(found, list) else [{"name": "default", "template": found}]
    templates = {
        str(each.get("name")): each["template"]
        for each in named
        if isinstance(each, dict) and isinstance(each.get("template"), str)
    }
    named_files = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    for path in (*named_files, folder / "chat_template.jinja"):
        is_default = path.parent == folder
        name = path.relative_to(folder).as_posix()
        if path.is_file() and (listed is None or name in listed):
            templates["default" if is_default else path.stem] = _read(path)
    if any("\ud800" <= character <= "\udfff" for text in templates.values() for character in text):
        raise ExportRefusedError("tokenizer_config.json has a chat_template of no valid Unicode")
    return {name: text for name, text in templates.items() if _NAME.fullmatch(name) and text}


def chat_template_metadata(templates: dict[str, str]) -> list[KeyValue]:
    """The `tokenizer.chat_template*` entries, in a fixed order."""
    names = sorted(templates.keys() - {"default"})
    entries = [kv.text(_KEY, templates["default"])] if "default" in templates else []
    if names:
        entries.append(kv.array("tokenizer.chat_templates", names, GGUFValueType.STRING))
    return entries + [kv.text(f"{_KEY}.{name}", templates[name]) for name in names]


def _read(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ExportRefusedError(f"{path} cannot be read: {error}") from None
