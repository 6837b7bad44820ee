"""The series of a run, for those who watch it in TensorBoard or Trackio.

One run of the tracker from the first block to the last measurement, of the process that talks:

    blocks/error_before, error_after, changed               over the blocks, from 1
    train/loss, changed, skipped, grad_norm, rate_low_rank, rate_scale ...     over the steps
    measured/perplexity, kl, same_top                       at the start and at the end

TensorBoard's files are among the states of the run; Trackio keeps its own, on this machine unless
the user's TRACKIO_SPACE_ID says otherwise.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lrqat.errors import UserError, did_you_mean
from lrqat.optional_libraries import load, refuse_missing

Record = Callable[[str, Mapping[str, Any], int], None]  # (group, values, step)


def record_nothing(group: str, values: Mapping[str, Any], step: int) -> None:
    """The `Record` of those who watch nothing."""


class Run(Protocol):
    """A run of a tracker."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Take values by their names, "group/name"."""

    def finish(self) -> None:
        """Write what is not written yet."""


@dataclass(frozen=True)
class _Tracker:
    """A row of the registry.

    Attributes:
        module: what must be installed.
        install: what pip is given for it.
        begin: (folder of the run's states, name of the run) to a run.
    """

    module: str
    install: str
    begin: Callable[[Path, str], Run]


class _TensorBoard:
    def __init__(self, states: Path, name: str) -> None:
        writer = load("torch.utils.tensorboard", TRACKERS["tensorboard"].install)
        self._writer = writer.SummaryWriter(str(states / "tensorboard"))

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()


class _Trackio:
    """Each step may be given once, and steps of blocks and of the model are not the same steps."""

    def __init__(self, states: Path, name: str) -> None:
        trackio = load("trackio", TRACKERS["trackio"].install)
        with _on_standard_error():
            self._run = trackio.init(project="lrqat", name=name, resume="allow")

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def finish(self) -> None:
        with _on_standard_error():
            self._run.finish()


TRACKERS = {
    "tensorboard": _Tracker("tensorboard", "lrqat[tensorboard]", _TensorBoard),
    "trackio": _Tracker("trackio", "lrqat[trackio]", _Trackio),
}


def tracker_names(given: str | None) -> list[str]:
    """The names in a list with commas between them; none of them is not installed.

    Raises:
        UserError: an unknown name, or a library that is missing, with the command that installs it.
    """
    names = [part.strip() for part in (given or "").split(",") if part.strip()]
    for name in names:
        if name not in TRACKERS:
            hint = did_you_mean(name, TRACKERS)
            raise UserError(f"--report-to {name!r} is unknown; {hint}choose {', '.join(TRACKERS)}")
        refuse_missing(TRACKERS[name].module, TRACKERS[name].install)
    return list(dict.fromkeys(names))


@contextmanager
def tracking(names: list[str], states: Path, name: str) -> Iterator[Record]:
    """Send series to trackers, as long as the block lasts.

    Args:
        names: of `TRACKERS`.
        states: folder of the run's states.
        name: of the run.
    """
    with contextlib.ExitStack() as stack:
        runs = []
        for each in names:
            runs.append(TRACKERS[each].begin(states, name))
            stack.callback(runs[-1].finish)

        def record(group: str, values: Mapping[str, Any], step: int) -> None:
            plain = {f"{group}/{n}": float(v) for n, v in values.items() if v is not None}
            for run in runs:
                run.log(plain, step)

        yield record


def _on_standard_error() -> Any:
    """Standard output is for results."""
    return contextlib.redirect_stdout(sys.stderr)
