"""The teacher of a run, loaded or asked once: what the loss and the measurements need of it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrqat.errors import UserError
from lrqat.evaluation.perplexity import LogitsFunction
from lrqat.layers.methods import METHODS
from lrqat.layers.modes import full_precision
from lrqat.models import hub
from lrqat.models.adapters.merging import folder_and_weight
from lrqat.models.reference import torch_logits
from lrqat.progress import tqdm
from lrqat.training import processes
from lrqat.training.base_model import load_merged
from lrqat.training.config import TrainConfig
from lrqat.training.data.blocks import TokenBlocks
from lrqat.training.model_settings import ModelSettings
from lrqat.training.objectives.cache_key import CacheKey
from lrqat.training.objectives.losses import Teacher
from lrqat.training.objectives.teacher_cache import (
    CachedBlocks,
    TeacherCache,
    is_complete,
    write_cache,
)
from lrqat.training.objectives.teachers import choose_teacher
from lrqat.training.plan import TrainingPlan
from lrqat.training.settings import SELF


@dataclass(frozen=True)
class Distillation:
    """The teacher of a run.

    Attributes:
        teacher: what the loss asks; None for cross-entropy.
        logits: what KL is measured against; None for perplexity alone.
        blocks: the training text, with the teacher's cached tokens where they are used.
    """

    teacher: Teacher | None
    logits: LogitsFunction | None
    blocks: Any


def prepare_teacher(
    config: TrainConfig, plan: TrainingPlan, model: Any, blocks: TokenBlocks
) -> Distillation:
    """Load the teacher of the run if it is a second model, and fill its cache if it has one.

    Args:
        config: the settings, resolved.
        plan: device and compute type.
        model: the prepared model.
        blocks: the training text.

    Raises:
        UserError: a teacher with another vocabulary, or a cache that belongs to another run.
    """
    choice = choose_teacher(config, model, kv_bits=config.kv_bits)
    if choice is None:
        return Distillation(None, None, blocks)
    name = config.source if config.teacher == SELF else config.teacher
    second = None if choice.second is None else _load(name, config, plan.device, plan.dtype)
    logits = _in_full_precision(model) if second is None else torch_logits(second)
    text: Any = blocks
    if choice.cached and METHODS[config.method].trains:
        # Only what the run will look at.
        seen = blocks.first(config.sequences * processes.count())
        context = full_precision(model) if second is None else contextlib.nullcontext()
        with context:
            asked = model if second is None else second
            text = _cached(config, name, asked, seen)
    return Distillation(choice.teacher(second), logits, text)


def _in_full_precision(model: Any) -> LogitsFunction:
    ours = torch_logits(model)

    def logits(tokens: Any) -> Any:
        with full_precision(model):
            return ours(tokens)

    return logits


def _load(name: str, student: ModelSettings, device: str, dtype: torch.dtype) -> nn.Module:
    trusted = student.trust_remote_code
    if name == student.model:
        teacher = load_merged(student, dtype)
    else:
        teacher = hub.load_model(name, dtype=dtype, trust_remote_code=trusted)
    own = hub.load_config(student.model, trust_remote_code=trusted)
    sizes = (teacher.config.get_text_config().vocab_size, own.get_text_config().vocab_size)
    if sizes[0] != sizes[1]:
        raise UserError(
            f"--teacher {name} has a vocabulary of {sizes[0]} and the model one of {sizes[1]}; "
            "distillation needs the same tokenizer"
        )
    return teacher.to(device).requires_grad_(False)


def _cached(config: TrainConfig, name: str, teacher: Any, blocks: TokenBlocks) -> CachedBlocks:
    """`blocks` with the teacher's most likely tokens, computed now if they are not on disk."""
    folder = Path(str(config.teacher_cache))
    key = CacheKey.of(
        blocks,
        teacher=_identity(name, teacher, config.adapter if name == config.source else ()),
        k=config.teacher_top_k,
        vocabulary=teacher.config.get_text_config().vocab_size,
    )
    if processes.is_main() and not is_complete(folder, key):
        write_cache(
            folder, key, blocks, teacher, batch_size=config.batch_size, progress=_teacher_bar
        )
    processes.wait()
    return CachedBlocks(blocks, TeacherCache.open(folder, key))


def _teacher_bar(items: Any) -> Iterator[Any]:
    return iter(tqdm(items, desc="teacher", unit="batch"))


def _identity(name: str, model: Any, adapters: tuple[str, ...] = ()) -> str:
    """What tells this teacher from a retrained one: name, and revision or times of its weights."""
    if adapters:
        named = [folder_and_weight(entry) for entry in adapters]
        added = (f"{weight} {_identity(folder, model)}" for folder, weight in named)
        return " + ".join([_identity(name, model), *added])
    folder = Path(name)
    if not folder.exists():
        return f"{name}@{getattr(model.config, '_commit_hash', None)}"
    files = [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    stamps = [f"{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]
    return f"{folder.name}@{','.join(stamps)}"
