"""The card's section on the text of a run: which it was, by name and hash, and how much of it."""

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from lrqat.foreign_text import in_code_span

_SETTINGS = ("stages", "teacher", "steps", "batch_size", "sequence_length", "seed")


def trained_on(manifest: Mapping[str, Any]) -> str:
    """A section of Markdown; nothing where lrqat.json says nothing of a run."""
    found = manifest.get("training")
    said: Mapping[str, Any] = found if isinstance(found, dict) else {}
    names = _listed(said.get("data"))
    if not any(isinstance(name, str) for name in names):
        return ""
    rows = [
        f"- `{in_code_span(str(name))}`" + (f", sha256 `{in_code_span(sha256)}`" if sha256 else "")
        for name, sha256 in zip_longest(names, _listed(said.get("data_sha256")))
        if isinstance(name, str)
    ]
    learned = _tokens(said)
    settings = {key: said[key] for key in _SETTINGS if isinstance(said.get(key), str | int)}
    lines = [
        f"{learned} of:" if learned else "Inputs were measured on:",
        "",
        *rows,
        *(["", ", ".join(f"{k} `{in_code_span(str(v))}`" for k, v in settings.items())]
          if learned else []),
    ]  # fmt: skip
    title = "Trained on" if learned else "Text"
    return f"## {title}\n\n" + "\n".join(lines) + "\n"


def _tokens(said: Mapping[str, Any]) -> str:
    """How many tokens each stage saw; nothing where none did."""
    counts = {"": said.get("tokens"), " block by block": said.get("tokens_of_blocks")}
    seen = [f"{n:,} tokens{how}" for how, n in counts.items() if isinstance(n, int) and n > 0]
    return ", and ".join(reversed(seen))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
