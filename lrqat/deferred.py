"""Functions of a table that are imported when they are first called.

A table says what there is to choose from, and what each choice is: that is wanted for `--help`, for
checking what a user wrote, and in plans, where torch would take seconds to import for nothing.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


class Deferred:
    """A function, or a class, by its place.

    Args:
        place: "lrqat.init.scale_search:search".
        **given: keywords that every call has.
    """

    def __init__(self, place: str, **given: Any) -> None:
        self._module, _, self._name = place.partition(":")
        self._given = given

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        return self.found()(*args, **self._given, **kwargs)

    def found(self) -> Any:
        """What is there."""
        return getattr(importlib.import_module(self._module), self._name)


def deferred_names(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose names are imported when they are first asked for.

    Args:
        package: its `__name__`.
        places: the module of each name.
    """

    def find(name: str) -> Any:
        if name in places:
            return getattr(importlib.import_module(places[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
