"""Where a model comes from: its repository on the hub, its licence, its languages.

Its source says so in a model card or in the metadata of a GGUF file. lrqat.json repeats it under
`base_model`, and whatever is made of a checkpoint says it again. All of it may be anybody's words,
so each is of a form in which nothing can hide; what has another form is left out.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from lrqat.cards.front_matter import Texts

_HUB = re.compile(r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)?([\w.-]{1,96}/[\w.-]{1,96})")
# What a value must look like whole. Sources: hub-docs, modelcard.md; huggingface_hub,
# `validate_repo_id`.
_FORMS = {
    "repository": re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", re.ASCII),
    "license": re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}", re.ASCII),
    "license_name": re.compile(r"[\w][\w .+()-]{0,99}", re.ASCII),
    "license_link": re.compile(r"https?://[\w./%~+#?=&-]{1,200}|[\w.-]{1,100}", re.ASCII),
}
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*", re.ASCII)
_MOST_LANGUAGES = 64


@dataclass(frozen=True)
class Origin:
    """What is known of a model's source.

    Attributes:
        repository: owner/name on the Hugging Face hub, or None.
        license: the hub's identifier of its licence, such as apache-2.0; "other" has a name.
        license_name: of a licence that the hub has no identifier for.
        license_link: where its text is.
        languages: codes, as the hub has them.
    """

    repository: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    languages: tuple[str, ...] = ()

    @classmethod
    def of_card(cls, front: Texts, repository: str | None = None) -> Self:
        """What a card says of its model.

        Args:
            front: its front matter.
            repository: where it was found, if that is known.
        """
        given = {name: front.get(name, [None])[0] for name in _FORMS}
        given["repository"] = repository
        return cls(**_valid(given), languages=_languages(front.get("language", [])))

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any]) -> Self:
        """What lrqat.json says; a name that is an id of the hub is the repository."""
        said = manifest.get("base_model")
        base = said if isinstance(said, dict) else {}
        given = {"repository": base.get("name")} | {k: v for k, v in base.items() if k in _FORMS}
        return cls(**_valid(given), languages=_languages(base.get("languages")))

    def to_manifest(self) -> dict[str, Any]:
        """What `of_manifest` reads, without what is not known."""
        found = asdict(self) | {"languages": list(self.languages)}
        return {name: value for name, value in found.items() if value}


def own_tags(manifest: Mapping[str, Any]) -> list[str]:
    """The tag of a checkpoint that LR-QAT trained; of one whose method is not known, too."""
    training = manifest.get("training")
    if isinstance(training, dict) and "imported" in training:
        return []
    method = training.get("method") if isinstance(training, dict) else None
    return ["lr-qat"] if method in (None, "lr-qat") else []


def is_license(text: str) -> bool:
    """Whether a text can be the hub's identifier of a licence."""
    return _FORMS["license"].fullmatch(text) is not None


def is_repository(text: str) -> bool:
    """Whether a text can be a repository of the hub, owner/name."""
    return _FORMS["repository"].fullmatch(text) is not None


def repository_in(text: str) -> str | None:
    """The repository that an address or an id of the hub names, or None."""
    found = _HUB.fullmatch(text.rstrip("/"))
    return found[1] if found and is_repository(found[1]) else None


def _valid(given: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: value
        for name, value in given.items()
        if isinstance(value, str) and _FORMS[name].fullmatch(value)
    }


def _languages(given: Any) -> tuple[str, ...]:
    several = given if isinstance(given, list) else []
    texts = (each for each in several if isinstance(each, str) and _LANGUAGE.fullmatch(each))
    return tuple(dict.fromkeys(texts))[:_MOST_LANGUAGES]
