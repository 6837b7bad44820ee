"""What a training run will do, from configuration files alone: what `--dry-run` prints."""

from dataclasses import dataclass
from typing import Any

import torch

from lrqat.errors import UserError, first_line
from lrqat.evaluation.perplexity import refuse_beyond
from lrqat.models.positions import learned_positions, trained_positions, warning_beyond
from lrqat.models.preparation import check_settings
from lrqat.models.stored_model import open_model
from lrqat.models.surgery import SurgeryPlan, plan_surgery
from lrqat.settings import AUTO
from lrqat.training.base_model import open_base
from lrqat.training.config import TrainConfig
from lrqat.training.data.corpus import check_texts
from lrqat.training.data.self_generated import refuse_short_context
from lrqat.training.disk import bytes_written, refuse_unwritable_outputs
from lrqat.training.duration import Duration, Work
from lrqat.training.estimate import trainable_parameters
from lrqat.training.machine import multiplies_bfloat16, process_memory
from lrqat.training.memory_warnings import warnings_of
from lrqat.training.pace import measure_pace
from lrqat.training.phases import RunMemory, estimate_run
from lrqat.training.recipes import find_recipe
from lrqat.training.settings import EMBEDDING_AND_HEAD, SELF


@dataclass(frozen=True)
class TrainingPlan:
    """What a run will do.

    Attributes:
        surgery: which layers are quantised, which are kept and why.
        trainable: number of trained values.
        memory: estimated peak, and that of every phase.
        device: torch device name.
        dtype: compute type.
        warnings: what the run may do and had better not.
        disk: bytes that it writes, about.
        work: what there is to compute.
    """

    surgery: SurgeryPlan
    trainable: int
    memory: RunMemory
    device: str
    dtype: torch.dtype
    work: Work
    warnings: tuple[str, ...] = ()
    disk: int = 0

    def to_json(self) -> dict[str, Any]:
        """The plan for machines."""
        return {
            "grid": self.surgery.grid.name,
            "quantized": {
                name: {"shape": list(t.shape), "count": t.count, "grid": t.grid.name}
                for name, t in self.surgery.quantized.items()
            },
            "kept": self.surgery.kept,
            "weights": self.surgery.weights,
            "bits_per_weight": self.surgery.bits_per_weight,
            "trainable": self.trainable,
            "memory_bytes": self.memory.to_json(),
            "device": self.device,
            "dtype": str(self.dtype).removeprefix("torch."),
            "disk_bytes": self.disk,
            "warnings": list(self.warnings),
        }


def plan_training(config: TrainConfig) -> TrainingPlan:
    """Plan a run from the model's configuration and the headers of its files.

    Raises:
        UserError: anything about the model, the grid or the settings that would stop the run.
    """
    config = config.resolved()
    stored = open_base(config)
    model = stored.skeleton
    surgery = plan_grids(model, config)
    check_settings(surgery, config)
    check_texts(config)
    trained = trainable_parameters(surgery, config, trains_scales=config.trains_scales)
    written = bytes_written(model, surgery, config, trained)
    refuse_unwritable_outputs(config, written)
    device = device_of(config.device)
    dtype = dtype_of(config.dtype, device, getattr(model.config, "dtype", None))
    memory = estimate_run(
        stored, surgery, config, dtype=dtype, device=device, libraries=process_memory()
    )
    return TrainingPlan(
        surgery=surgery,
        trainable=trained,
        memory=memory,
        device=device,
        dtype=dtype,
        work=Work.of(model, surgery),
        warnings=(
            *stored.notes,
            *_check_lengths(config, model),
            *_of_budget(config),
            *warnings_of(memory, config, device),
        ),
        disk=written,
    )


def _of_budget(config: TrainConfig) -> tuple[str, ...]:
    note = (
        "the run chooses the grids for its size by measurement, and these are not they; lrqat plan "
        "shows them before"
    )
    return (note,) if config.has_target else ()


def estimate_duration(
    config: TrainConfig, plan: TrainingPlan, windows: int | None = None, done: int | None = None
) -> Duration:
    """How long a run will take on this machine, whose pace is measured, which takes a second.

    Args:
        config: the settings.
        plan: of the run.
        windows: of text that is measured; None: as many as there are at most.
        done: steps of the model that were made before, of a run that is continued from there.
    """
    config = config.resolved()
    pace = measure_pace(plan.surgery, config, dtype=plan.dtype, device=plan.device)
    windows = config.eval_windows if windows is None else windows
    return Duration.of(config, plan.work, pace, windows=windows, done=done)


def plan_grids(model: Any, settings: TrainConfig) -> SurgeryPlan:
    """Which weights of a model go on which grid. Raises as `plan_surgery` and `find_recipe` do."""
    return plan_surgery(
        model,
        settings.grid,
        settings.keep,
        settings.grids_by_pattern(),
        embedding_grid=settings.embedding_grid,
        head_grid=settings.head_grid,
        embedding_and_head=EMBEDDING_AND_HEAD,
        recipe=find_recipe(settings.recipe, model, imatrix=bool(settings.imatrix)),
        misfit=settings.misfit,
    )


def _check_lengths(config: TrainConfig, model: Any) -> tuple[str, ...]:
    """Warnings of lengths past what was trained. Raises DataError for those past what is there."""
    models = [model]
    if config.teacher not in ("none", SELF):
        teacher = open_model(config.teacher, trust_remote_code=config.trust_remote_code)
        models.append(teacher.skeleton)
    if config.writes_own:
        refuse_short_context(model.config, config.sequence_length)
    lengths = {"--sequence-length": config.sequence_length, "--context": config.context}
    for each in models:
        for setting, length in lengths.items():
            refuse_beyond(learned_positions(each), length, setting)
    found = [
        warning_beyond(trained_positions(each.config), length, setting)
        for each in models
        for setting, length in lengths.items()
    ]
    return tuple(dict.fromkeys(warning for warning in found if warning))


def device_of(name: str) -> str:
    """What `--device` means on this machine. Raises UserError for one that cannot be used."""
    if name != AUTO:
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            reason = first_line(error)
            raise UserError(f"--device {name!r} cannot be used: {reason}; try cpu") from None
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype_of(name: str, device: str, stored: torch.dtype | None = None) -> torch.dtype:
    """What `--dtype` means on a device.

    Args:
        name: of the setting.
        device: where to compute.
        stored: type of the model's weights; None where one is as good as another.
    """
    if name != AUTO:
        return getattr(torch, name)  # one of lrqat.training.model_settings.DTYPES
    if device != "cpu":
        return torch.bfloat16
    fast = stored == torch.bfloat16 and multiplies_bfloat16()
    return torch.bfloat16 if fast else torch.float32
