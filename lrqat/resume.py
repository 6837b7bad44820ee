"""Saved states of a run: finding the last one, and refusing one of another run."""

import json
from pathlib import Path
from typing import Any

from lrqat.config import TrainConfig
from lrqat.errors import UserError
from lrqat.trainer import ADAPTERS
from lrqat.write_json import write_json

STATES = "checkpoints"
_RUN = "run.json"
# What may differ between a run and its continuation.
_FREE = {"output", "save_every", "eval_data", "eval_windows", "context", "device"}


def record_run(state_folder: Path, config: TrainConfig) -> None:
    """Write the settings of a run beside its states."""
    state_folder.mkdir(parents=True, exist_ok=True)
    write_json(state_folder / _RUN, config.to_json())


def find_state(state_folder: Path, resume: str | None, config: TrainConfig) -> Path | None:
    """The state to continue from, or None to start at the beginning.

    Args:
        state_folder: where the run keeps its states.
        resume: None; "auto" for the last complete state, if any; or a state's folder.
        config: settings of the run that wants to continue.

    Raises:
        UserError: the named state is not there or not complete, or the run that saved it had other
            settings.
    """
    if resume is None:
        return None
    if resume == "auto":
        states = sorted(filter(_complete, state_folder.glob("checkpoint-*")), key=_step)
        state = states[-1] if states else None
    else:
        state = Path(resume)
        if not _complete(state):
            raise UserError(
                f"{resume} is not a complete saved state; use --resume auto for the last one"
            )
    if state is not None:
        _refuse_other_settings(state.parent / _RUN, config)
    return state


def _complete(state: Path) -> bool:
    # The Trainer writes trainer_state.json after the tensors and the optimiser.
    parts = (ADAPTERS, "optimizer.pt", "scheduler.pt", "trainer_state.json")
    return all((state / part).is_file() for part in parts)


def _step(state: Path) -> int:
    number = state.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _refuse_other_settings(path: Path, config: TrainConfig) -> None:
    try:
        recorded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}, the settings of the run to resume, cannot be read: {error}"
        ) from None
    current = config.to_json()
    for name in current.keys() - _FREE:
        if recorded.get(name) != current[name]:
            raise UserError(
                f"the run to resume had {name} {recorded.get(name)!r}, this one has "
                f"{current[name]!r}; resume with the same settings, or start anew with --overwrite"
            )
