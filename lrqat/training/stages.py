"""The stages of a run: onto the grids, block by block where asked, then the model as a whole."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from lrqat.layers.methods import METHODS
from lrqat.layers.norms import thaw_norms
from lrqat.models.hidden_states import decoder
from lrqat.models.preparation import freeze_scales
from lrqat.training import processes
from lrqat.training.allocator import give_back
from lrqat.training.best import keep_start, put_back
from lrqat.training.blocks.stage import BlockReport, prepare_by_blocks
from lrqat.training.calibration import calibration_batches, quantize_activations
from lrqat.training.config import TrainConfig
from lrqat.training.data.blocks import TokenBlocks
from lrqat.training.data.corpus import Corpus
from lrqat.training.finishing import finish
from lrqat.training.fitting import Fitted, fit
from lrqat.training.loading import load_prepared
from lrqat.training.measuring import Beginning, Measurement, Say, measure, measure_beginning
from lrqat.training.objectives.distillation import prepare_teacher
from lrqat.training.plan import TrainingPlan
from lrqat.training.trackers import Record, record_nothing


@dataclass(frozen=True)
class Outcome:
    """What the stages gave.

    Attributes:
        model: as it ships.
        fitted: what the steps of the whole model gave.
        blocks: what became of each block, if they were fitted one by one.
        block_seconds: that it took, by the clock.
        beginning: where the steps of the whole model began; None where rounding comes at the end,
            and where there are no such steps after the blocks.
        after: of `model`.
    """

    model: Any
    fitted: Fitted
    blocks: list[BlockReport]
    block_seconds: float
    beginning: Beginning | None
    after: Measurement


def run_stages(
    config: TrainConfig,
    plan: TrainingPlan,
    corpus: Corpus,
    take_original: Callable[[], Any],
    states: Path,
    state: Path | None,
    say: Say,
    record: Record = record_nothing,
) -> Outcome:
    """Train.

    Args:
        config: the settings, resolved.
        plan: which weights go on which grid, and where to compute.
        corpus: the text.
        take_original: gives the model in full precision, which becomes the trained one and is held
            by nobody else; None where weights are read one at a time.
        states: folder of what a stopped run is continued from.
        state: of the whole model's steps, the one to continue from, or None.
        say: receives progress messages.
        record: gets the series.
    """
    clock = time.monotonic()
    begun = state.parent if state else states  # where the run that is continued kept its own
    model, blocks = _prepare(config, plan, corpus.blocks, take_original(), begun, record)
    block_seconds = time.monotonic() - clock if blocks else 0.0
    give_back()
    teacher = prepare_teacher(config, plan, model, corpus.blocks)
    method, fitted, beginning = METHODS[config.method], Fitted(model), None
    if method.rounds_inside and (config.as_a_whole or not config.by_blocks):
        beginning = measure_beginning(
            model, corpus.windows, say, teacher.logits, after_blocks=config.by_blocks
        )
        record("measured", beginning.start.to_json(), 0)
    if method.trains and config.as_a_whole:
        if state is None and processes.is_main():
            keep_start(model, states)
        fitted = fit(model, teacher, config, plan, states, state, record)
    give_back()
    model = finish(fitted.model, config, plan, corpus.blocks)
    after = measure(model, corpus.windows, method.outcome, say, teacher.logits)
    if fitted.history and beginning and put_back(model, begun, beginning, after, say):
        after = measure(model, corpus.windows, "what is written", say, teacher.logits)
    record("measured", after.to_json(), config.steps if fitted.history else 0)
    return Outcome(model, fitted, blocks, block_seconds, beginning, after)


def _prepare(
    config: TrainConfig,
    plan: TrainingPlan,
    blocks: TokenBlocks,
    original: Any,
    states: Path,
    record: Record,
) -> tuple[Any, list[BlockReport]]:
    """The model on its grids, and what became of its blocks if they were fitted one by one."""
    if not config.by_blocks:
        return load_prepared(config, plan, blocks, original), []
    set_seed(config.seed)
    model, reports = prepare_by_blocks(original, config, plan, blocks, states, record)
    if not config.trains_scales:
        freeze_scales(model)
    if config.norms_after_blocks:
        thaw_norms(decoder(model))
    batches = calibration_batches(
        blocks, tokens=config.importance_tokens, batch_size=config.batch_size, device=plan.device
    )
    quantize_activations(model, plan.surgery, config, batches)
    return model, reports
