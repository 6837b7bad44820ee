"""What `--data` names: one source of text, or several with their shares of the run.

train.jsonl                     all of one
a.jsonl b.txt                   all of each
a.jsonl:0.8 b.txt:0.2           four blocks of the first for each of the second
self, self:prompts.jsonl        what the model writes: text, or answers to prompts
"""

from dataclasses import dataclass
from pathlib import Path

from lrqat.errors import UserError
from lrqat.named_numbers import name_and_number

SELF = "self"
_PROMPTS = f"{SELF}:"


@dataclass(frozen=True)
class Source:
    """One source of text.

    Attributes:
        name: a path, `-` for standard input, or the name of a dataset on the hub.
        share: of the run's blocks, all shares together being 1; None: as much as it has.
    """

    name: str
    share: float | None = None

    @property
    def short(self) -> str:
        """Its name without folders, for people and for what is published."""
        return "standard input" if self.name == "-" else self.published

    @property
    def published(self) -> str:
        """Its name without folders; answers keep what they are."""
        kept = _PROMPTS if self.prompts else ""
        return kept + Path(self.name.removeprefix(kept)).name

    @property
    def prompts(self) -> Path | None:
        """The file of prompts that the model answers; None where it does not."""
        return Path(self.name.removeprefix(_PROMPTS)) if self.name.startswith(_PROMPTS) else None

    @property
    def is_own(self) -> bool:
        """Whether the model writes it."""
        return self.name == SELF or self.prompts is not None


def parse_sources(data: str | tuple[str, ...]) -> tuple[Source, ...]:
    """The sources that `--data` names.

    A name that stands alone is taken as it is: `owner/name:2024` is a configuration of a dataset.
    So is one of several if there is a file of that name.

    Raises:
        UserError: shares of some and not of others, a share of nothing, or a source twice.
    """
    entries = (data,) if isinstance(data, str) else tuple(data)
    if len(entries) == 1:
        return (Source(entries[0]),)
    found = [Source(*name_and_number(entry)) for entry in entries]
    names = [source.name for source in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--data names {twice} twice; give it a larger share: {twice}:0.5")
    shares = [source.share for source in found if source.share is not None]
    if not shares:
        return tuple(found)
    if len(shares) < len(found):
        bare = next(source.name for source in found if source.share is None)
        raise UserError(
            f"--data {bare} has no share and others have; give it one ({bare}:0.5), or none to all"
        )
    if min(shares) <= 0:
        raise UserError(f"a share of --data is {min(shares):g}; leave that source out")
    return tuple(
        Source(name, share / sum(shares)) for name, share in zip(names, shares, strict=True)
    )
