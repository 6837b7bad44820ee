"""Where a checkpoint is written: its folder.

It also holds states, exports, and what is said of the training: a picture and a report.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from lrqat import atomic_files
from lrqat.checkpoint.manifest import FILE_NAME
from lrqat.checkpoint.roles import Role, role_of
from lrqat.foreign_files import ForeignFileError, read_json

# Beside the checkpoint, for people.
PICTURE, REPORT = "training.png", "training-report.json"
# Among the states of a run, and no part of what is handed on: it names paths of the machine.
STATES, RUN = "checkpoints", "run.yaml"


def published(folder: Path) -> AbstractContextManager[Path]:
    """A temporary folder that replaces the checkpoint in `folder` when the block ends.

    Every reader finds the old checkpoint or the new one, whole. What is not the checkpoint's stays.

    Raises:
        OutputError: another process writes there, the disk is full, or it is not writable.
    """
    return atomic_files.staged_folder(folder, FILE_NAME, not_the_checkpoints)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other runs out of `folder`, after finishing or removing what a killed one left.

    Raises:
        OutputError: another process writes there, and is named; or it cannot be written.
    """
    with atomic_files.locked(folder) as alone:
        if alone:
            atomic_files.sweep(folder, FILE_NAME, not_the_checkpoints)
        yield


def recover(folder: Path) -> None:
    """Finish what a killed process left half published, if it did; for readers.

    There may be no checkpoint yet, or one beside which exports and states are missing; see
    `lrqat.atomic_files`.
    """
    if not (folder / FILE_NAME).is_file() or atomic_files.is_unsettled(folder):
        atomic_files.recover(folder, FILE_NAME, not_the_checkpoints)


def not_the_checkpoints(folder: Path) -> list[str]:
    """Names in the folder of a checkpoint that stay when it is replaced.

    Its own are those that its manifest lists, and whatever else transformers would take for a part
    of the model: an earlier lrqat, or somebody's hand, may have left them.
    """
    own = {name.split("/")[0] for name in _listed(folder)} | {FILE_NAME, PICTURE, REPORT}
    of_a_model = (Role.MODEL, Role.TEXT)
    names = os.listdir(folder)
    return sorted(n for n in names if n not in own and role_of(n) not in of_a_model)


def _listed(folder: Path) -> list[str]:
    """What the manifest lists, whatever its version; nothing if there is none that can be read."""
    try:
        manifest = read_json(folder / FILE_NAME)
        return [str(name) for name in manifest["files"]]
    except (ForeignFileError, TypeError, KeyError):
        return []
