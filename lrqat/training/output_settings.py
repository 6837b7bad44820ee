"""The settings of what a run writes."""

from dataclasses import dataclass, field

from lrqat.settings import Group, about, at_least, option
from lrqat.training.trackers import TRACKERS, tracker_names


@dataclass(frozen=True, kw_only=True)
class OutputSettings(Group):
    """What is written."""

    title = "output"

    output: str = field(metadata=about("folder for the fused checkpoint"))
    save_every: int = option(
        "steps between resumable states; 0: a tenth of --steps", 0, at_least(0)
    )  # fmt: skip
    report_to: str | None = option(
        f"show the run's series in {' or '.join(TRACKERS)}, or in both, with a comma between them",
        None,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        tracker_names(self.report_to)  # before anything is trained
