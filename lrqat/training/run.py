"""Training from end to end: load, plan, measure, prepare, train, measure, fuse.

    plan = plan_training(config)     # from configuration files alone; what --dry-run prints
    report = train(config)           # writes the fused checkpoint into config.output

While it runs, resumable states are kept in `output/checkpoints`; the fused checkpoint appears in
`output` at the end, all its files together.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PrinterCallback, set_seed

from lrqat.atomic_files import explain_os_errors, replaced_file
from lrqat.checkpoint.manifest import sha256_of
from lrqat.checkpoint.publishing import PICTURE, held
from lrqat.evaluation.perplexity import (
    RULE,
    Comparison,
    LogitsFunction,
    Perplexity,
    Windows,
    compare,
    perplexity,
)
from lrqat.evaluation.text import EvaluationText
from lrqat.init.lora_init import round_to_nearest
from lrqat.layers.embedding import LRQATEmbedding
from lrqat.layers.experts import LRQATExperts
from lrqat.layers.methods import METHODS
from lrqat.models import hub
from lrqat.models.fuse import fuse
from lrqat.models.preparation import merge_and_round
from lrqat.models.reference import torch_logits
from lrqat.models.surgery import EXPERTS
from lrqat.training import processes
from lrqat.training.calibration import measure_inputs
from lrqat.training.callbacks import ProgressLine, share_changed
from lrqat.training.config import TrainConfig
from lrqat.training.data.corpus import Corpus, read_corpus
from lrqat.training.guard import StepGuard
from lrqat.training.loading import describe_base, load_original, load_prepared
from lrqat.training.objectives.losses import Objective
from lrqat.training.objectives.teachers import Distillation, choose_teacher
from lrqat.training.plan import TrainingPlan, plan_training
from lrqat.training.plots import plot_training
from lrqat.training.report import TrainReport
from lrqat.training.states.resume import (
    STATES,
    find_state,
    record_run,
    refuse_earlier_run,
    refuse_overwritten_inputs,
)
from lrqat.training.trainer import LRQATTrainer, training_arguments
from lrqat.training.training_model import TrainingModel

Say = Callable[[str], None]


def train(
    config: TrainConfig,
    *,
    overwrite: bool = False,
    resume: str | None = None,
    say: Say = lambda message: None,
) -> TrainReport:
    """Train `config.model` on its grid and write the fused checkpoint.

    Args:
        config: the settings.
        overwrite: replace a fused checkpoint that is already in `config.output`.
        resume: "auto" for the last saved state of `config.output`, or the folder of a state.
        say: receives progress messages, one line each.

    Raises:
        UserError: bad input, before anything is written; another run that writes there; a diverged
            run (`NonFiniteLossError`), whose last good state has been saved; a full disk.
    """
    refuse_overwritten_inputs(config, overwrite, resume)
    plan = plan_training(config)
    processes.join(plan.device)
    with held(Path(config.output)) if processes.is_main() else nullcontext():
        if resume is None:
            refuse_earlier_run(config, overwrite)
        return _train(config, plan, resume, say)


def _train(config: TrainConfig, plan: TrainingPlan, resume: str | None, say: Say) -> TrainReport:
    output = Path(config.output)
    state_folder = output / STATES
    if not processes.is_main():
        say = _say_nothing
    state = find_state(state_folder, resume, config, say)
    processes.wait()  # nobody writes before everybody has looked
    set_seed(config.seed)
    tokenizer = hub.load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    base = describe_base(config)
    original = None if config.streamed else load_original(config, plan)
    corpus = read_corpus(config, tokenizer, original, say)
    before = None
    if original is not None:
        before, _ = _measure(original, corpus.windows, "full precision", say)
    model = load_prepared(config, plan, corpus.blocks, original)
    del original
    distillation = choose_teacher(config, plan, model, corpus.blocks)
    rounded, at_start = None, None
    if METHODS[config.method].rounds_inside:
        with round_to_nearest(model) as elsewhere:
            rounded, at_start = _measure(
                model, corpus.windows, "round-to-nearest", say, distillation.logits
            )
        if elsewhere:
            _measure(model, corpus.windows, "at the start", say, distillation.logits)
    with explain_os_errors(output):
        _open_states(state_folder, state, config)
        run = _Run(model, [], 0.0, 0)
        if config.method != "rtn":
            run = _fit(model, distillation, config, plan, state_folder, state)
    model = _to_float32(_round_at_last(run.model, config, plan, corpus).eval())
    after, at_end = _measure(model, corpus.windows, "trained", say, distillation.logits)
    report = TrainReport(
        output=output,
        before=before,
        rounded=rounded,
        after=after,
        kl_rounded=at_start.kl if at_start else None,
        kl_after=at_end.kl if at_end else None,
        same_top_after=at_end.same_top if at_end else None,
        changed=share_changed(model),
        seconds=run.seconds,
        skipped_steps=run.skipped_steps,
    )
    if processes.is_main():
        _publish(model, tokenizer, config, plan, base, corpus, report, run.history)
    processes.leave()
    return report


def _round_at_last(model: Any, config: TrainConfig, plan: TrainingPlan, corpus: Corpus) -> Any:
    """Round what the method has left in full precision; if anything."""
    if METHODS[config.method].rounds_inside:
        return model
    importance = measure_inputs(model, plan, config, corpus.blocks).importance
    return merge_and_round(model, plan.surgery, config.settings(), importance)


def _open_states(folder: Path, state: Path | None, config: TrainConfig) -> None:
    """Make the folder of states ready; those of an earlier run must not be taken for this one's."""
    if processes.is_main():
        if state is None:
            shutil.rmtree(folder, ignore_errors=True)
        record_run(folder, config)
    processes.wait()


def _say_nothing(message: str) -> None:
    """What processes other than the first say."""


class _Run:
    """What fitting gave: the model, what was logged, the seconds, the steps that were skipped."""

    def __init__(
        self, model: Any, history: list[dict[str, float]], seconds: float, skipped_steps: int
    ) -> None:
        self.model, self.history = model, history
        self.seconds, self.skipped_steps = seconds, skipped_steps


def _publish(
    model: Any,
    tokenizer: Any,
    config: TrainConfig,
    plan: TrainingPlan,
    base: dict[str, Any],
    corpus: Corpus,
    report: TrainReport,
    history: list[dict[str, float]],
) -> None:
    fuse(
        model,
        tokenizer,
        report.output,
        plan=plan.surgery,
        base_model=base,
        training=_describe_training(config),
        reference=_describe_reference(report.after, config, corpus.evaluation),
    )
    if history:
        with explain_os_errors(report.output):
            title = f"{base['name']}, {config.grid}"
            with replaced_file(report.output / PICTURE, overwrite=True) as path:
                plot_training(history, path, title)


def _fit(
    model: Any,
    distillation: Distillation,
    config: TrainConfig,
    plan: TrainingPlan,
    state_folder: Path,
    state: Path | None,
) -> _Run:
    """Run the Trainer."""
    guard = StepGuard()
    training_model = TrainingModel(
        model,
        Objective(distillation.teacher, config.cross_entropy_weight),
        gradient_checkpointing=config.gradient_checkpointing,
    )
    progress = ProgressLine(training_model, config.tokens_per_step, guard)
    trainer = LRQATTrainer(
        training_model,
        args=training_arguments(
            config,
            state_folder,
            use_cpu=plan.device == "cpu",
            experts=any(t.kind == EXPERTS for t in plan.surgery.quantized.values()),
        ),
        train_dataset=distillation.blocks,
        rates={
            "low_rank": config.low_rank_rate,
            "scale": config.scale_learning_rate,
            "weight": config.weight_learning_rate,
        },
        optimizer=config.optimizer,
        guard=guard,
        callbacks=[progress],
    )
    trainer.remove_callback(PrinterCallback)
    start = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=str(state) if state else None)
    finally:
        progress.close()
    seconds = time.monotonic() - start
    return _Run(trainer.trained_model(), progress.history, seconds, guard.skipped)


def _measure(
    model: Any, windows: Windows, what: str, say: Say, teacher: LogitsFunction | None = None
) -> tuple[Perplexity, Comparison | None]:
    """Perplexity, and with a teacher the comparison with it."""

    def progress(items: Any) -> Any:
        return tqdm(items, desc=what, unit="window")

    logits = torch_logits(model.eval())
    if teacher is None:
        result, comparison, divergence = perplexity(logits, windows, progress), None, ""
    else:
        comparison = compare(teacher, logits, windows, progress)
        result, divergence = comparison.target, f", KL from the teacher {comparison.kl:.5f}"
    say(f"perplexity, {what}: {result.perplexity:.4f} +/- {result.standard_error:.4f}{divergence}")
    return result, comparison


def _to_float32(model: Any) -> Any:
    """Compute in float32 from here on: the reference is measured with the weights that ship."""
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *_buffers(module)]:
            if name != "phi" and tensor.is_floating_point():  # phi is decoded to float32 when used
                tensor.data = tensor.data.float()
        if isinstance(module, LRQATEmbedding | LRQATExperts):
            module.dtype = torch.float32
    return model


def _buffers(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(n, b) for n, b in module.named_buffers(recurse=False) if b.is_floating_point()]


def _describe_training(config: TrainConfig) -> dict[str, Any]:
    """All settings, the tokens seen, and the hash of a text that is a file."""
    data = Path(config.data)
    return config.to_json() | {
        "tokens": config.steps * config.tokens_per_step * processes.count(),
        "data_sha256": sha256_of(data) if data.is_file() else None,
    }


def _describe_reference(
    after: Perplexity, config: TrainConfig, evaluation: EvaluationText
) -> dict[str, Any]:
    return after.to_json() | {
        "context": config.context,
        "rule": RULE,
        "data": evaluation.name,
        "data_sha256": evaluation.sha256,
    }
