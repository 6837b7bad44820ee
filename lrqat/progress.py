"""Progress bars: a line that moves on a terminal, a line now and then in a log file."""

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm as _Bar
from tqdm.auto import tqdm as _auto_bar

_SECONDS = 30.0  # between two lines of a log


class LogLines(_Bar):
    """A bar whose every state is a line of its own: none at the start, some, and one at the end."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = {"mininterval": _SECONDS, "delay": 1e-9, "ncols": 160, "ascii": True}
        super().__init__(*args, **kwargs | given | {"dynamic_ncols": False})

    disable: bool
    monitor_interval = 0  # no thread that writes the same state again
    _written: tuple[Any, Any] | None = None

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """What writes a state."""

        def write(state: str) -> None:
            if state.strip():
                file.write(f"{state.strip()}\n")
                file.flush()

        return write

    def moveto(self, n: int) -> None:
        """Stay: a log file has no line above."""

    def close(self) -> None:
        """Write the last state; calling it again does nothing."""
        if self.disable:
            return
        self.disable = True
        self._decr_instances(self)
        if self.n and self._written != (self.n, self.postfix):
            self.sp(str(self))

    def display(self, *args: Any, **kwargs: Any) -> Any:
        """Write a state."""
        self._written = (self.n, self.postfix)
        return super().display(*args, **kwargs)

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Keep what is said beside the count; it is written with the next state."""
        super().set_postfix_str(s, refresh=False)


def tqdm(*args: Any, **kwargs: Any) -> Any:
    """A bar of tqdm's for where standard error goes; arguments as of `tqdm.tqdm`."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    notebook = "ipykernel" in sys.modules
    return (_auto_bar if terminal or notebook else LogLines)(*args, **kwargs)
