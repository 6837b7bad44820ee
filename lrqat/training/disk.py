"""What a run writes, and whether there is a place for it: found before anything is computed."""

import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from lrqat.atomic_files import refuse_unwritable
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.layers.frozen import downcast_for
from lrqat.models.standard_format import loads_with_transformers
from lrqat.models.surgery import SurgeryPlan
from lrqat.models.tying import is_tied
from lrqat.training.config import TrainConfig

_STATES = 3  # two are kept, while the next is written


def refuse_unwritable_outputs(config: TrainConfig, needed: int) -> None:
    """Refuse an `--output`, or a `--teacher-cache` that is not there yet, that cannot be written.

    Args:
        config: the settings; an empty output is none, of a plan that is only looked at.
        needed: bytes that the run writes into its output.

    Raises:
        OutputError: see `lrqat.atomic_files.refuse_unwritable`.
    """
    if config.output:
        refuse_unwritable(config.output, folder=True, needed=needed)
    if config.teacher_cache and not Path(config.teacher_cache).exists():
        refuse_unwritable(config.teacher_cache, folder=True)


def free_at(output: str) -> int:
    """Free bytes of the disk that a folder will be on."""
    place = Path(os.path.realpath(output))
    return shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free


def bytes_written(model: Any, surgery: SurgeryPlan, config: TrainConfig, trained: int) -> int:
    """Bytes that a run needs on the disk: its checkpoint, and the states that it keeps.

    Args:
        model: on the meta device.
        surgery: which weights go on which grid.
        config: the settings, resolved.
        trained: number of trained values.
    """
    values = sum(parameter.numel() for parameter in model.parameters())
    if is_tied(model):
        values -= model.get_output_embeddings().weight.numel()
    stored = getattr(model.config, "dtype", None) or torch.float32
    unquantized = max(0, values - surgery.weights) * stored.itemsize
    checkpoint = unquantized + math.ceil(surgery.weights * surgery.bits_per_weight / 8)
    if loads_with_transformers(surgery):  # which is given the embedding in float32, too
        kinds = ((t.kind, t.weights) for t in surgery.quantized.values())
        checkpoint += 4 * sum(count for kind, count in kinds if kind == WeightKind.EMBEDDING)
    moments = 2 if config.optimizer == "adamw8bit" else 8
    every = config.save_every or max(1, config.steps // 10)
    states = min(_STATES, max(1, config.steps // every)) if trained and config.as_a_whole else 0
    start = 4 * trained if trained and config.as_a_whole else 0
    return checkpoint + states * trained * (4 + moments) + start + _blocks(surgery, config)


def _blocks(surgery: SurgeryPlan, config: TrainConfig) -> int:
    """The finished blocks: Phi0 and what belongs to it, of every weight."""
    if not config.by_blocks:
        return 0
    targets = surgery.quantized.values()
    forms = {t.grid: downcast_for(config.phi, t.grid) for t in targets}
    return sum(
        t.count
        * t.shape[0]
        * forms[t.grid].columns(t.grid, t.shape[1])
        * forms[t.grid].dtype().itemsize
        + 8 * t.groups
        for t in targets
    )
