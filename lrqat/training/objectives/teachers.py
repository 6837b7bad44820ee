"""Which teacher a run has. The run and the estimate of its memory ask here, and nowhere else."""

from dataclasses import dataclass

from torch import nn

from lrqat.layers.lora import LoRALinear
from lrqat.layers.modes import full_precision, provides_full_precision
from lrqat.training.objectives.losses import CachedTeacher, ModelTeacher, SelfTeacher, Teacher
from lrqat.training.settings import NONE, SELF, ObjectiveSettings


@dataclass(frozen=True)
class TeacherChoice:
    """The teacher of a run.

    Attributes:
        second: the model that is held beside the student, by its folder or hub id, or `self` for
            another copy of the student's; None where the student itself is asked.
        cached: whether the steps read the teacher's most likely tokens from a cache.
    """

    second: str | None
    cached: bool

    def teacher(self, second: nn.Module | None) -> Teacher:
        """What the loss asks.

        Args:
            second: the model that `second` names, None where it names none.
        """
        if self.cached:
            return CachedTeacher()
        return SelfTeacher(full_precision) if second is None else ModelTeacher(second)


def choose_teacher(
    objective: ObjectiveSettings, student: nn.Module, *, kv_bits: int | None
) -> TeacherChoice | None:
    """The teacher of a run, None if there is none.

    The student is its own teacher, without a second copy, if it can compute with its original
    weights from beginning to end of the run: its frozen weights must be exact, plain LoRA is merged
    into them in the end, and fake-quantized keys and values stay so.

    Args:
        objective: `teacher` and `teacher_cache`.
        student: the prepared model, also on meta.
        kv_bits: of the run's keys and values, None if they are unquantized.
    """
    if objective.teacher == NONE:
        return None
    keeps_weights = provides_full_precision(student) and not any(
        isinstance(module, LoRALinear) for module in student.modules()
    )
    alone = objective.teacher == SELF and keeps_weights and not kv_bits
    return TeacherChoice(None if alone else objective.teacher, objective.teacher_cache is not None)
