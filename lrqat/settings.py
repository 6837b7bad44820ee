"""Settings in groups: fields that carry their help text, their default and what they may be.

A group is a frozen dataclass of settings that belong together. What a command takes is a class that
inherits from several: the user sees one flat object, and a function that is typed with one group
can use that group alone.

    @dataclass(frozen=True, kw_only=True)
    class TextSettings(Group):
        title = "text"
        data: str = field(metadata=about("text to train on"))                 # must be given
        context: int = option("tokens per window", 512, at_least(1))
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import Field, dataclass
from typing import Any, ClassVar

from lrqat.errors import UserError, did_you_mean

AUTO = "auto"
Check = Callable[
    [Any], str | None
]  # what is wrong with a value, or None; None is never asked about


@dataclass(frozen=True, kw_only=True)
class Group:
    """Settings that belong together.

    Attributes:
        title: heading of the group in `--help`.

    Raises:
        UserError: a value that its field does not take, on construction.
    """

    title: ClassVar[str]

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value, check = getattr(self, each.name), each.metadata.get("check")
            wrong = check(value) if check and value is not None else None
            if wrong:
                raise UserError(f"{flag(each.name)} {value!r} {wrong}")


def about(help_text: str, check: Check | None = None) -> dict[str, Any]:
    """Metadata of a field: a text for `--help`, and what its value may be."""
    return {"help": help_text, "check": check}


def option(help_text: str, default: Any, check: Check | None = None) -> Any:
    """A field with a default."""
    return dataclasses.field(default=default, metadata=about(help_text, check))


def groups_of(kind: type[Group]) -> Iterator[tuple[str, list[Field[Any]]]]:
    """The title and the fields of every group that `kind` inherits from, in its order."""
    fields = {each.name: each for each in dataclasses.fields(kind)}
    for base in kind.__mro__:
        own = [fields[name] for name in inspect.get_annotations(base) if name in fields]
        if issubclass(base, Group) and own:
            yield base.title, own


def flag(name: str) -> str:
    """The command's option for a setting; `for_` is --for, a word that Python keeps for itself."""
    return "--" + name.rstrip("_").replace("_", "-")


def at_least(least: float) -> Check:
    """Finite, and not below `least`."""
    return lambda v: None if least <= v < math.inf else f"must be at least {least}, and finite"


def above(bound: float) -> Check:
    """Finite, and above `bound`."""
    return lambda v: None if bound < v < math.inf else f"must be above {bound}, and finite"


def between(least: float, most: float) -> Check:
    """From `least` to `most`."""
    return lambda v: None if least <= v <= most else f"must be between {least} and {most}"


def one_of(known: Iterable[Any]) -> Check:
    """One of a few names or numbers."""
    choices = list(known)

    def check(value: Any) -> str | None:
        if value in choices:
            return None
        hint = did_you_mean(value, map(str, choices))
        return f"is unknown; {hint}choose {', '.join(map(str, choices))}"

    return check
