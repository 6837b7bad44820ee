"""Saved states on disk: written whole or not at all, checked before they are believed.

A state is a folder `checkpoint-<step>`:

    adapters.safetensors     the trained tensors (A, B, s), by name
    optimizer.safetensors    the optimiser's, by "<parameter>.<key>"
    random.safetensors       the random generators of every rank, "<rank>.<generator>"
    training.json            parameter groups, schedule, skipped steps, number of processes
    trainer_state.json       the Trainer's own record
    state.json               {"format", "version", "step", "files": {name: {"sha256", "bytes"}}}

It is made beside its place, fsynced and renamed, so a killed process leaves a temporary folder,
which is never taken for a state and goes when the run is continued. The two newest are kept.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrqat.atomic_files import replaced_folder, sweep_leftovers, write_json
from lrqat.checkpoint.manifest import describe_files, sha256_of
from lrqat.foreign_files import ForeignFileError, read_json

ADAPTERS = "adapters.safetensors"
OPTIMIZER = "optimizer.safetensors"
RANDOM = "random.safetensors"
TRAINING = "training.json"
TRAINER_STATE = "trainer_state.json"  # the name that the Trainer reads
STATE = "state.json"
FILES = {ADAPTERS, OPTIMIZER, RANDOM, TRAINING, TRAINER_STATE}
_FORMAT, _VERSION = "lrqat-state", 1
_NAME = re.compile(r"checkpoint-(\d+)")


def write_state(folder: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Write the state of a step, then remove all others but its predecessor.

    What is later than `step` is removed too: it is of a run that was left behind when an earlier
    state was resumed.

    Args:
        folder: where the run keeps its states.
        step: number of the last step taken.
        write: puts the files `FILES` into the folder that it is given.

    Returns:
        The state.

    Raises:
        OutputError: the disk is full or not writable; the states that were there remain.
    """
    target = folder / f"checkpoint-{step}"
    if target.exists() and not (target / STATE).is_file():
        shutil.rmtree(target)
    with replaced_folder(target, overwrite=True, marker=STATE) as staging:
        write(staging)
        record = {
            "format": _FORMAT,
            "version": _VERSION,
            "step": step,
            "files": describe_files(staging, sorted(FILES)),
        }
        write_json(staging / STATE, record)
    older = [state for state in list_states(folder) if step_of(state) < step]
    for state in list_states(folder):
        if state != target and state not in older[-1:]:
            shutil.rmtree(state, ignore_errors=True)
    return target


def list_states(folder: Path) -> list[Path]:
    """Folders that are named like a state, oldest first."""
    return sorted(filter(lambda path: step_of(path) >= 0, folder.glob("checkpoint-*")), key=step_of)


def step_of(state: Path) -> int:
    """The step in the name of a state; -1 if it is not named like one."""
    found = _NAME.fullmatch(state.name)
    return int(found[1]) if found else -1


def sweep(folder: Path) -> None:
    """Remove what a killed process left unfinished; what a living one is writing stays."""
    sweep_leftovers(folder, STATE)


def read_training(state: Path) -> dict[str, Any]:
    """What `training.json` of a state holds."""
    return read_json(state / TRAINING)


def read_history(state: Path) -> list[dict[str, Any]]:
    """What the Trainer had logged when it saved a state, a row for each time."""
    return list(read_json(state / TRAINER_STATE)["log_history"])


def damage(state: Path) -> str | None:
    """What is wrong with a state, in words, or None if it is as it was written."""
    if not (state / STATE).is_file():
        return f"it has no {STATE}"
    try:
        record = read_json(state / STATE)
    except ForeignFileError:
        return f"{STATE} is not valid JSON"
    if record.get("format") != _FORMAT:
        return f"{STATE} does not describe a saved state"
    if record.get("version") != _VERSION:
        return f"it has version {record.get('version')!r} and this lrqat reads {_VERSION}"
    files = record.get("files")
    if not isinstance(files, dict) or set(files) != FILES:
        return f"{STATE} does not list the files of a state"
    return next(filter(None, (_file_damage(state / n, files[n]) for n in sorted(FILES))), None)


def _file_damage(path: Path, expected: Any) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    wanted = expected if isinstance(expected, dict) else {}
    if size != wanted.get("bytes"):
        return f"{path.name} has {size} bytes where {wanted.get('bytes')} were written"
    if sha256_of(path) != wanted.get("sha256"):
        return f"{path.name} was altered: its sha256 is not the one in {STATE}"
    return None
