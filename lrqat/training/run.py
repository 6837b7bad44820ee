"""Training from end to end: load, plan, measure, prepare, train, measure, fuse.

    plan = plan_training(config)     # from configuration files alone; what --dry-run prints
    report = train(config)           # writes the fused checkpoint into config.output

While it runs, resumable states are kept in `output/checkpoints`; the fused checkpoint appears in
`output` at the end, all its files together.
"""

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import set_seed

from lrqat.atomic_files import explain_os_errors, write_json
from lrqat.checkpoint.manifest import names_only
from lrqat.checkpoint.publishing import PICTURE, REPORT, STATES, held
from lrqat.errors import UserError
from lrqat.evaluation.perplexity import RULE
from lrqat.layers.methods import METHODS
from lrqat.models.fuse import fuse
from lrqat.models.license_files import license_files
from lrqat.training import processes
from lrqat.training.budget import Budgeted, FileBytes, choose_grids, no_file_bytes, with_budget
from lrqat.training.callbacks import share_changed
from lrqat.training.config import TrainConfig
from lrqat.training.data.corpus import read_corpus, sha256_of_data
from lrqat.training.data.measured import Evaluation
from lrqat.training.loading import describe_base, load_original, load_tokenizer
from lrqat.training.measuring import Say, measure
from lrqat.training.plan import TrainingPlan, estimate_duration, plan_training
from lrqat.training.plots import plot_training
from lrqat.training.report import TrainReport
from lrqat.training.stage_settings import BLOCK_BATCH
from lrqat.training.stages import Outcome, run_stages
from lrqat.training.states.folder import step_of
from lrqat.training.states.resume import (
    find_state,
    record_run,
    refuse_earlier_run,
    refuse_overwritten_inputs,
    saved_budget,
)
from lrqat.training.trackers import tracker_names, tracking


def train(
    config: TrainConfig,
    *,
    overwrite: bool = False,
    resume: str | None = None,
    say: Say = lambda message: None,
    file_bytes: FileBytes = no_file_bytes,
) -> TrainReport:
    """Train `config.model` on its grid and write the fused checkpoint.

    Args:
        config: the settings.
        overwrite: replace a fused checkpoint that is already in `config.output`.
        resume: "auto" for the last saved state of `config.output`, or the folder of a state.
        say: receives progress messages, one line each.
        file_bytes: gives the size of an exported file, for a budget.

    Raises:
        UserError: bad input, before anything is written; another run that writes there; a diverged
            run (`NonFiniteLossError`), whose last good state has been saved; a full disk.
    """
    config = config.resolved()
    refuse_overwritten_inputs(config, overwrite, resume)
    plan = plan_training(config)
    processes.join(plan.device)
    if config.has_target and processes.count() > 1:
        raise UserError(
            "--target-size and --target-bits measure in one process; run lrqat plan, and give its "
            "recipe to all with --recipe"
        )
    say = say if processes.is_main() else _say_nothing
    with held(Path(config.output)) if processes.is_main() else nullcontext():
        if resume is None:
            refuse_earlier_run(config, overwrite)
        return _train(config, plan, resume, say, file_bytes)


def _train(
    config: TrainConfig, plan: TrainingPlan, resume: str | None, say: Say, file_bytes: FileBytes
) -> TrainReport:
    """The run, once it is known that nothing of the user's is in its way."""
    output, states = Path(config.output), Path(config.output, STATES)
    state = find_state(states, resume, config, say)
    processes.wait()  # nobody writes before everybody has looked

    set_seed(config.seed)
    tokenizer = load_tokenizer(config)
    base = describe_base(config)
    original = None if config.streamed else load_original(config, plan)
    corpus = read_corpus(config, tokenizer, original, say)
    windows = corpus.windows
    if METHODS[config.method].trains:
        steps_made = None if state is None else step_of(state)
        say(estimate_duration(config, plan, len(windows.tokens), steps_made).line())
    before = None if original is None else measure(original, windows, "full precision", say)
    chosen = None
    if config.has_target:
        chosen = saved_budget(states, state) or choose_grids(
            original, tokenizer, plan.surgery, config, corpus.blocks.tokens, say, file_bytes
        )
        plan = with_budget(plan, chosen.recipe, config)
    trackers = tracker_names(config.report_to) if processes.is_main() else []
    with explain_os_errors(output):
        _open_states(states, config, chosen, resumes=resume is not None)
        holder = [original]
        del original  # the stages hold it alone, and drop what they no longer need
        with tracking(trackers, states, output.resolve().name) as record:
            done = run_stages(config, plan, corpus, holder.pop, states, state, say, record)
    changed = share_changed(done.model)
    sensitivity = chosen.sensitivity if chosen else {}
    report = TrainReport.of(config, before, done, changed, sensitivity)
    if processes.is_main():
        _publish(done, tokenizer, base, config, plan, corpus.evaluation, report)
    processes.leave()
    return report


def _say_nothing(message: str) -> None:
    """What processes other than the first say."""


def _open_states(
    folder: Path, config: TrainConfig, budgeted: Budgeted | None, *, resumes: bool
) -> None:
    """Make the folder of states ready; those of an earlier run must not be taken for this one's."""
    if processes.is_main():
        if not resumes:
            shutil.rmtree(folder, ignore_errors=True)
        record_run(folder, config, budgeted)
    processes.wait()


def _publish(
    done: Outcome,
    tokenizer: Any,
    base: dict[str, Any],
    config: TrainConfig,
    plan: TrainingPlan,
    evaluation: Evaluation,
    report: TrainReport,
) -> None:
    """Write the fused checkpoint; in its folder a picture and a report of the run."""

    def describe(folder: Path) -> None:
        title = f"{base['name']}, {config.grid}"
        plot_training(done.fitted.history, folder / PICTURE, title)
        # The folder is handed on, and where it lay is nobody's business.
        write_json(folder / REPORT, report.to_json() | {"output": report.output.name})

    fuse(
        done.model,
        tokenizer,
        report.output,
        plan=plan.surgery,
        base_model=base,
        training=_describe_training(config),
        reference=_describe_reference(report, config, evaluation),
        licenses=license_files(config.model),
        beside=describe,
    )


def _describe_training(config: TrainConfig) -> dict[str, Any]:
    """All settings, the tokens seen, and the hash of every text that is a file."""
    trains = METHODS[config.method].trains and config.as_a_whole
    steps = config.steps if trains else 0
    of_a_block = config.block_steps * BLOCK_BATCH if config.by_blocks else 0
    said = config.to_json() | {
        "tokens": steps * config.tokens_per_step * processes.count(),
        "tokens_of_blocks": of_a_block * processes.count(),
        "data_sha256": sha256_of_data(config),
    }
    sources = config.sources
    if sources[0].prompts is not None:
        said["data"] = sources[0].published
    if len(sources) > 1:
        said["data"] = [source.name for source in sources]
        said["data_shares"] = [source.share for source in sources]
    return said


def _describe_reference(
    report: TrainReport, config: TrainConfig, evaluation: Evaluation
) -> dict[str, Any]:
    """What was measured of the model that is written, and, if it was, how far its base is."""
    beside = {
        "base_perplexity": report.before and report.before.perplexity,
        "kl": report.kl_after,
        "same_top": report.same_top_after,
    }
    teacher = {} if report.kl_after is None else {"teacher": names_only(config.teacher)}
    found = {name: value for name, value in beside.items() if value is not None} | teacher
    return (
        report.after.to_json()
        | found
        | {
            "context": evaluation.windows.context,
            "rule": RULE,
            "data": evaluation.name,
            "data_sha256": evaluation.sha256,
        }
    )
