"""Choosing the teacher of a run, and what full precision is measured with."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from lrqat.errors import UserError
from lrqat.evaluation.perplexity import LogitsFunction
from lrqat.layers.methods import METHODS
from lrqat.layers.modes import full_precision, provides_full_precision
from lrqat.models import hub
from lrqat.models.reference import torch_logits
from lrqat.training import processes
from lrqat.training.config import SELF, TrainConfig
from lrqat.training.data.documents import TokenBlocks
from lrqat.training.objectives.losses import CachedTeacher, ModelTeacher, SelfTeacher, Teacher
from lrqat.training.objectives.teacher_cache import (
    CachedBlocks,
    CacheKey,
    TeacherCache,
    is_complete,
    write_cache,
)
from lrqat.training.plan import TrainingPlan


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


def choose_teacher(
    config: TrainConfig, plan: TrainingPlan, model: Any, blocks: TokenBlocks
) -> Distillation:
    """The teacher that `config` names.

    The model is its own teacher without a second copy wherever its frozen weights are exact.

    Args:
        config: `teacher`, `teacher_cache` ...
        plan: device and compute type.
        model: the prepared model.
        blocks: the training text.

    Raises:
        UserError: a teacher with another vocabulary, or a cache that belongs to another run.
    """
    if config.teacher == "none":
        return Distillation(None, None, blocks)
    # Merging LoRA replaces the weights that it began with; rounded keys and values stay rounded.
    without_copy = (
        provides_full_precision(model)
        and METHODS[config.method].rounds_inside
        and not config.kv_bits
    )
    if config.teacher == SELF and without_copy:
        teacher: Teacher = SelfTeacher(full_precision)
        logits = _in_full_precision(model)
        asked: Any = model
    else:
        asked = _load(config, plan)
        teacher, logits = ModelTeacher(asked), torch_logits(asked)
    if config.teacher_cache is None:
        return Distillation(teacher, logits, blocks)
    # Only what the run will look at.
    seen = config.steps * config.batch_size * config.gradient_accumulation * processes.count()
    blocks = TokenBlocks(blocks.tokens[:seen].reshape(-1), config.sequence_length)
    context = full_precision(model) if asked is model else contextlib.nullcontext()
    with context:
        cached = _cached(config, asked, blocks)
    return Distillation(CachedTeacher(), logits, cached)


def _in_full_precision(model: Any) -> LogitsFunction:
    ours = torch_logits(model)

    def logits(tokens: Any) -> Any:
        with full_precision(model):
            return ours(tokens)

    return logits


def _load(config: TrainConfig, plan: TrainingPlan) -> Any:
    name = config.model if config.teacher == SELF else config.teacher
    teacher = hub.load_model(name, dtype=plan.dtype, trust_remote_code=config.trust_remote_code)
    own = hub.load_config(config.model, trust_remote_code=config.trust_remote_code)
    sizes = (teacher.config.get_text_config().vocab_size, own.get_text_config().vocab_size)
    if sizes[0] != sizes[1]:
        raise UserError(
            f"--teacher {name} has a vocabulary of {sizes[0]} and the model one of {sizes[1]}; "
            "distillation needs the same tokenizer"
        )
    return teacher.to(plan.device).requires_grad_(False)


def _cached(config: TrainConfig, teacher: Any, blocks: TokenBlocks) -> CachedBlocks:
    """`blocks` with the teacher's most likely tokens, computed now if they are not on disk."""
    folder = Path(str(config.teacher_cache))
    key = CacheKey.of(
        blocks,
        teacher=_identity(config.model if config.teacher == SELF else config.teacher, teacher),
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


def _identity(name: str, model: Any) -> str:
    """What tells this teacher from a retrained one: name, and revision or times of its weights."""
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{getattr(model.config, '_commit_hash', None)}"
    files = sorted(folder.glob("*.safetensors"))
    stamps = [f"{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]
    return f"{folder.name}@{','.join(stamps)}"
