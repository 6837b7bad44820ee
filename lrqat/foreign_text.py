"""Names and messages from files of others, where people read them.

A terminal obeys escape sequences in what it shows: they move the cursor, change its title, and can
make a check that failed read as one that passed. Readers of Markdown obey HTML.
"""

import re


def shown(text: str) -> str:
    """A text without anything that a terminal would obey; line ends and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def in_markdown(text: str) -> str:
    """A text as it is, on one line of Markdown: no HTML, link, image, heading or code in it."""
    plain = " ".join(shown(text).split())
    return re.sub(r"([\\`*\[\]<>|#])", r"\\\1", plain.replace("&", "&amp;"))


def in_code_span(text: str) -> str:
    """A text for between two backticks of Markdown, where nothing but a backtick means anything."""
    return " ".join(shown(text).split()).replace("`", "'")
