"""Saved states of a run: finding the last one, and refusing one of another run."""

from collections.abc import Callable
from pathlib import Path

from lrqat.atomic_files import refuse_existing, refuse_overlap, replaced_file, write_json
from lrqat.checkpoint.manifest import FILE_NAME
from lrqat.checkpoint.publishing import RUN as RUN_FILE
from lrqat.checkpoint.publishing import STATES
from lrqat.errors import OutputError, UserError
from lrqat.foreign_files import read_json
from lrqat.models.adapters.merging import folder_and_weight
from lrqat.recipes.recipe_file import read_recipe, write_recipe
from lrqat.training.blocks.saved import has_blocks
from lrqat.training.budget import Budgeted
from lrqat.training.config import TrainConfig
from lrqat.training.run_file import write_run
from lrqat.training.states.folder import STATE, damage, list_states

RUN, _RECIPE, _SENSITIVITY = "run.json", "recipe.yaml", "sensitivity.json"
# What may differ between a run and its continuation.
_FREE = {"output", "save_every", "eval_data", "eval_windows", "context", "device", "teacher_cache",
         "report_to"}  # fmt: skip


def record_run(state_folder: Path, config: TrainConfig, budgeted: Budgeted | None = None) -> None:
    """Write the settings of a run beside its states, and what its budget chose."""
    if budgeted is not None:
        state_folder.mkdir(parents=True, exist_ok=True)
        write_recipe(budgeted.recipe, state_folder / _RECIPE, overwrite=True)
        with replaced_file(state_folder / _SENSITIVITY, overwrite=True) as path:
            write_json(path, budgeted.sensitivity)
    with replaced_file(state_folder / RUN, overwrite=True) as path:
        write_json(path, config.to_json())
    write_run(config, state_folder / RUN_FILE, overwrite=True)


def saved_budget(state_folder: Path, state: Path | None) -> Budgeted | None:
    """What the budget of a run chose, if it goes on from a state or from blocks.

    Raises:
        UserError: a file is not there any more, or damaged.
    """
    if state is None and not has_blocks(state_folder):
        return None
    folder = state.parent if state else state_folder
    noted = folder / _SENSITIVITY  # an earlier lrqat wrote none
    sensitivity = read_json(noted) if noted.is_file() else {}
    return Budgeted(read_recipe(folder / _RECIPE), sensitivity)


def refuse_overwritten_inputs(config: TrainConfig, overwrite: bool, resume: str | None) -> None:
    """Refuse an output that would be written over what the run reads.

    A first run may write into a folder of its model's; one that replaces something may not.

    Raises:
        OutputError: both places are named.
    """
    given = {
        "--model": config.model,
        "--eval-data": config.eval_data,
        "--teacher": config.teacher,
        "--imatrix": config.imatrix,
        "--recipe": config.recipe,
        "--resume": resume if resume and (Path(resume) / STATE).is_file() else None,
    }
    # Else it is an id on the hub, or a word such as self.
    named = [*(("--data", source.name) for source in config.sources), *given.items()]
    named += [("--adapter", folder_and_weight(entry)[0]) for entry in config.adapter]
    inputs = [(name, path) for name, path in named if path and Path(path).exists()]
    states = Path(config.output).resolve() / STATES
    outside = [(name, path) for name, path in inputs if Path(path).resolve().parent != states]
    cache = ("--teacher-cache", config.teacher_cache)
    refuse_overlap(config.output, [*outside, cache], inside=not overwrite)


def refuse_earlier_run(config: TrainConfig, overwrite: bool) -> None:
    """Refuse an output with a checkpoint in it, or with the states of a run that did not finish.

    Raises:
        OutputError: there is one, and `overwrite` is false.
    """
    output = Path(config.output)
    if not overwrite and (output / STATES).is_dir() and not (output / FILE_NAME).is_file():
        raise OutputError(
            f"{output} holds a run that did not finish; continue it with --resume auto, or start "
            "anew with --overwrite"
        )
    refuse_existing(output, overwrite)


def find_state(
    state_folder: Path,
    resume: str | None,
    config: TrainConfig,
    say: Callable[[str], None] = lambda message: None,
) -> Path | None:
    """The state to continue from, or None to start at the beginning.

    Args:
        state_folder: where the run keeps its states.
        resume: None; "auto" for the last state that is intact, if any; or a state's folder.
        config: settings of the run that wants to continue.
        say: told which states "auto" had to pass over, and why.

    Raises:
        UserError: the named state is not there or damaged, or the run that saved it had other
            settings.
    """
    if resume is None:
        return None
    state = _last_intact(state_folder, say) if resume == "auto" else _named(Path(resume))
    if state is not None or has_blocks(state_folder):
        _refuse_other_settings((state.parent if state else state_folder) / RUN, config)
    return state


def _last_intact(state_folder: Path, say: Callable[[str], None]) -> Path | None:
    for state in reversed(list_states(state_folder)):
        wrong = damage(state)
        if wrong is None:
            return state
        say(f"{state} is damaged ({wrong}); looking for an earlier state")
    where = (
        "going on from finished blocks" if has_blocks(state_folder) else "starting at the beginning"
    )
    say(f"no intact saved state in {state_folder}; {where}")
    return None


def _named(state: Path) -> Path:
    wrong = damage(state)
    if wrong is not None:
        raise UserError(
            f"{state} is not a complete saved state: {wrong}; use --resume auto for the last one "
            "that is intact"
        )
    return state


def _refuse_other_settings(path: Path, config: TrainConfig) -> None:
    try:
        recorded = read_json(path)
    except UserError as error:
        raise UserError(f"the settings of the run to resume cannot be read: {error}") from None
    current = config.to_json()
    for name in current.keys() - _FREE:
        if recorded.get(name) != current[name]:
            raise UserError(
                f"the run to resume had {name} {recorded.get(name)!r}, this one has "
                f"{current[name]!r}; resume with the same settings, or start anew with --overwrite"
            )
