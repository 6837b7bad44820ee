"""What may be given to a report: each is recognised by what it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lrqat.errors import UserError
from lrqat.foreign_files import ForeignFileError, read_json
from lrqat.reporting.exports import is_export, read_export
from lrqat.reporting.fields import Fields
from lrqat.reporting.json_files import read_frontier, read_proofs, read_tokens
from lrqat.reporting.layers import Progress
from lrqat.reporting.material import Material, Model
from lrqat.reporting.runs import is_run, read_report, read_run

_MOST_VALUES = 1 << 23  # KL of some three hundred thousand tokens


class Given:
    """Something that was given, looked at once.

    Attributes:
        path: where it is.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    @cached_property
    def content(self) -> dict[str, Any]:
        """The object of a file of JSON; an empty one if it is none."""
        if self.path.suffix != ".json" or not self.path.is_file():
            return {}
        return read_json(self.path, _MOST_VALUES)

    @property
    def fields(self) -> Fields:
        """The same, to be read."""
        return Fields(self.content, str(self.path))


@dataclass(frozen=True)
class Source:
    """A row of the registry.

    Attributes:
        about: what it is and where it comes from, for people.
        is_it: whether something is one.
        add: puts it among the material; (what was given, base, progress).
    """

    about: str
    is_it: Callable[[Given], bool]
    add: Callable[[Material, Given, str | None, Progress], None]


def _add_run(to: Material, given: Given, base: str | None, progress: Progress) -> None:
    to.models.append(read_run(given.path, base, progress))


def _add_export(to: Material, given: Given, base: str | None, progress: Progress) -> None:
    to.models.append(read_export(given.path, base, progress))


def _add_tokens(to: Material, given: Given, base: str | None, progress: Progress) -> None:
    to.tokens.append(read_tokens(given.fields, str(given.path)))


def _add_proofs(to: Material, given: Given, base: str | None, progress: Progress) -> None:
    to.proofs.extend(read_proofs(given.fields, str(given.path)))


def _add_frontier(to: Material, given: Given, base: str | None, progress: Progress) -> None:
    to.frontiers.append(read_frontier(given.fields, str(given.path)))


def _add_report(to: Material, given: Given, base: str | None, progress: Progress) -> None:
    training = read_report(given.fields, {})
    to.models.append(Model(str(given.path), "report of a training", training=training))


def _has(*names: str) -> Callable[[Given], bool]:
    return lambda given: all(name in given.content for name in names)


# The first that fits counts.
SOURCES = (
    Source("the folder of a run", lambda given: is_run(given.path), _add_run),
    Source("a .gguf file or an ONNX folder", lambda given: is_export(given.path), _add_export),
    Source("what lrqat evaluate --tokens wrote", _has("per_token"), _add_tokens),
    Source("what lrqat parity --json printed", _has("files", "passed"), _add_proofs),
    Source("what lrqat plan --frontier --json printed", _has("frontier"), _add_frontier),
    Source("what lrqat train --json printed", _has("perplexity", "history"), _add_report),
)


def gather(paths: Sequence[str], base: str | None, progress: Progress) -> Material:
    """Read everything that was given.

    Args:
        paths: files and folders.
        base: the model that they were made from, to compare weights with; or None.
        progress: wraps the iterable of a model's weights.

    Raises:
        UserError: something is not there, is nothing that a report is made of, or is damaged.
    """
    found = Material()
    for path in paths:
        given = Given(path)
        if not given.path.exists():
            raise UserError(f"nothing at {path}; check the path")
        source = next((source for source in SOURCES if source.is_it(given)), None)
        if source is None:
            known = "; ".join(source.about for source in SOURCES)
            raise UserError(f"{path} is nothing that a report is made of; give any of: {known}")
        try:
            source.add(found, given, base, progress)
        except ForeignFileError as error:
            raise UserError(f"{path}, taken for {source.about}: {error}") from None
    return found
