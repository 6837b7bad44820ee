"""The steps of a run: a prepared model and its loss, put through the Trainer."""

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainingArguments

from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.training.callbacks import ProgressLine, history_of
from lrqat.training.config import TrainConfig
from lrqat.training.guard import StepGuard
from lrqat.training.interruption import interruptible
from lrqat.training.objectives.distillation import Distillation
from lrqat.training.objectives.losses import Objective
from lrqat.training.optimizers import rates_in_use
from lrqat.training.plan import TrainingPlan
from lrqat.training.settings import ScheduleSettings
from lrqat.training.states.folder import read_history, step_of
from lrqat.training.trackers import Record, record_nothing
from lrqat.training.trainer import LRQATTrainer, load_adapters
from lrqat.training.training_model import TrainingModel


@dataclass(frozen=True)
class Fitted:
    """What the steps gave.

    Attributes:
        model: the prepared model with what it has learned.
        history: what was logged, see `lrqat.training.callbacks.ProgressLine`.
        seconds: by the clock.
        skipped_steps: steps that were skipped because something was not finite.
    """

    model: Any
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    skipped_steps: int = 0


def fit(
    model: Any,
    distillation: Distillation,
    config: TrainConfig,
    plan: TrainingPlan,
    state_folder: Path,
    state: Path | None,
    record: Record = record_nothing,
) -> Fitted:
    """Train a prepared model.

    Args:
        model: what to train.
        distillation: its teacher, and the text.
        config: the settings, resolved.
        plan: where to compute.
        state_folder: where resumable states go.
        state: the one to continue from, or None.
        record: gets the series.

    Raises:
        NonFiniteLossError: the run diverged; its last good state has been saved.
        Interrupted: Ctrl-C; a state has been saved.
    """
    if state and step_of(state) >= config.steps:  # it was stopped after its last step
        load_adapters(model, state)
        return Fitted(model, history_of(read_history(state)))
    guard = StepGuard()
    objective = Objective(distillation.teacher, config.cross_entropy_weight)
    training_model = TrainingModel(
        model, objective, gradient_checkpointing=config.gradient_checkpointing
    )
    rates = rates_in_use(model, config.rates)
    progress = ProgressLine(training_model, config.tokens_per_step, guard, rates, record)
    what = "a state is saved after this step"
    start = time.monotonic()
    with contextlib.closing(progress), interruptible(state_folder, what) as interruption:
        trainer = LRQATTrainer(
            training_model,
            args=_arguments(config, plan, state_folder),
            train_dataset=distillation.blocks,
            rates=config.rates,
            optimizer=config.optimizer,
            guard=guard,
            interruption=interruption,
            callbacks=[progress],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=str(state) if state else None)
    seconds = time.monotonic() - start
    return Fitted(trainer.trained_model(), progress.history, seconds, guard.skipped)


def _arguments(config: TrainConfig, plan: TrainingPlan, state_folder: Path) -> TrainingArguments:
    return training_arguments(
        config,
        state_folder,
        save_every=config.save_every,
        use_cpu=plan.device == "cpu",
        experts=any(t.kind == WeightKind.EXPERTS for t in plan.surgery.quantized.values()),
    )


def training_arguments(
    schedule: ScheduleSettings,
    state_folder: Path,
    *,
    save_every: int,
    use_cpu: bool,
    experts: bool = False,
) -> TrainingArguments:
    """The Trainer's arguments for `schedule`; states go to `state_folder`.

    Under torchrun or `accelerate launch`, making them starts the process group and picks this
    process's device.

    Args:
        schedule: resolved.
        state_folder: where resumable states go.
        save_every: steps between states, 0 for a tenth of all.
        use_cpu: whether the run is on the CPU although there may be a GPU.
        experts: whether stacks of experts are trained.
    """
    return TrainingArguments(
        output_dir=str(state_folder),
        max_steps=schedule.steps,
        per_device_train_batch_size=schedule.batch_size,
        gradient_accumulation_steps=schedule.gradient_accumulation,
        learning_rate=schedule.rates["low_rank"],
        lr_scheduler_type="linear",
        warmup_steps=round(0.1 * schedule.steps),
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=schedule.seed,
        data_seed=schedule.seed,
        use_cpu=use_cpu,
        save_steps=save_every or max(1, schedule.steps // 10),
        logging_steps=max(1, schedule.steps // 100),
        logging_nan_inf_filter=False,  # StepGuard.watch does it without waiting for the device
        # Every trained parameter is used in every step, but for experts that no token chose; no
        # buffer ever changes.
        ddp_find_unused_parameters=experts,
        ddp_broadcast_buffers=False,
        report_to=[],  # `lrqat.training.trackers` has the series of all stages in one run
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=not use_cpu,
    )
