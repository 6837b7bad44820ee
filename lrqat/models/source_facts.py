"""What a base model says of itself beside its weights: licence, languages, repository."""

from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from lrqat.cards.front_matter import Texts, read_front_matter
from lrqat.cards.origin import Origin, repository_in
from lrqat.checkpoint.roles import CARD
from lrqat.foreign_files import ForeignFileError, read_bytes
from lrqat.models.from_gguf.folder import is_gguf, said_by

_GENERAL = ("license", "license.name", "license.link")
_REPOSITORIES = ("general.repo_url", "general.source.repo_url", "general.base_model.0.repo_url")


def source_facts(name: str) -> Origin:
    """What is said by the card of a folder or of a repository, or by a GGUF file's metadata.

    Args:
        name: as `--model` takes it. What cannot be read, or got, says nothing.
    """
    if is_gguf(name):
        said = said_by(name)
        known = {key: said.get(f"general.{key}") for key in _GENERAL}
        front = {key.replace(".", "_"): [str(value)] for key, value in known.items() if value}
        languages = said.get("general.languages")
        front["language"] = [str(each) for each in languages] if isinstance(languages, list) else []
        found = (repository_in(str(said.get(key, ""))) for key in _REPOSITORIES)
        return Origin.of_card(front, next(filter(None, found), None))
    return Origin.of_card(_card_of(name))


def _card_of(name: str) -> Texts:
    path: Any = Path(name, CARD)
    if not Path(name).is_dir():
        # All three: a model without a card is as good as one with.
        path = cached_file(
            name,
            CARD,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    try:
        return {} if path is None else read_front_matter(read_bytes(Path(path)).decode("utf-8"))
    except (ForeignFileError, UnicodeDecodeError):
        return {}
