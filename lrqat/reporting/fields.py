"""JSON that somebody else wrote, asked for what it should hold."""

from collections.abc import Iterator
from typing import Any

from lrqat.foreign_files import ForeignFileError

_MOST = 1e30  # nothing that is measured is larger


class Fields:
    """An object of JSON. Every method raises ForeignFileError for what is of another type.

    Args:
        value: the object.
        where: names it in messages.
    """

    def __init__(self, value: Any, where: str) -> None:
        self._where = where
        self._value: dict[str, Any] = self._checked(value, "it", dict)

    def __contains__(self, name: str) -> bool:
        return self._value.get(name) is not None

    def number(self, name: str) -> float:
        """A finite number."""
        return self._number(self._value.get(name), name)

    def maybe(self, name: str) -> float | None:
        """The same, or None where there is none."""
        return self.number(name) if name in self else None

    def count(self, name: str) -> int:
        """A whole number; 0 where there is none."""
        return int(self.maybe(name) or 0)

    def text(self, name: str) -> str:
        """A text; empty where there is none."""
        return str(self._checked(self._value[name], name, str)) if name in self else ""

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        return tuple(self._checked(each, name, str) for each in self._list(name))

    def part(self, name: str) -> "Fields":
        """An object; an empty one where there is none."""
        return Fields(self._value.get(name) or {}, f"{self._where}: {name}")

    def parts(self, name: str) -> Iterator["Fields"]:
        """A list of objects."""
        return (Fields(each, f"{self._where}: {name}") for each in self._list(name))

    def named(self) -> Iterator[tuple[str, "Fields"]]:
        """The objects in this one by their names; what is none is left out."""
        items = ((n, v) for n, v in self._value.items() if isinstance(v, dict))
        return ((name, Fields(value, f"{self._where}: {name}")) for name, value in items)

    def numbers(self) -> dict[str, float]:
        """The numbers in this object by their names; what is null is left out."""
        return {n: self._number(v, n) for n, v in self._value.items() if v is not None}

    def guesses(self, name: str) -> tuple[tuple[str, float], ...]:
        """A list of [text, number], of at least one."""
        pairs = [self._checked(pair, name, list) for pair in self._list(name)]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise self._wrong(name, "is no list of tokens and their probabilities")
        return tuple(
            (self._checked(text, name, str), self._number(share, name)) for text, share in pairs
        )

    def plain(self, name: str) -> str:
        """A text, number or flag, as a text; empty for anything else."""
        value = self._value.get(name)
        return str(value) if isinstance(value, str | int | float) else ""

    def flags(self, name: str) -> dict[str, bool]:
        """An object of true and false."""
        found = self._checked(self._value.get(name), name, dict)
        return {key: self._checked(value, key, bool) for key, value in found.items()}

    def _list(self, name: str) -> list[Any]:
        return list(self._checked(self._value.get(name, []), name, list))

    def _number(self, value: Any, name: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, "is no number")
        if not abs(value) < _MOST:
            raise self._wrong(name, "is no finite number, or none that can be")
        return float(value)

    def _checked(self, value: Any, name: str, kind: type) -> Any:
        if not isinstance(value, kind):
            words = {dict: "object", list: "list", str: "text", bool: "true or false"}
            raise self._wrong(name, f"is no {words[kind]}")
        return value

    def _wrong(self, name: str, what: str) -> ForeignFileError:
        return ForeignFileError(f"{self._where}: {name!r:.80} {what}; use an intact copy")
