"""What a training run needs in memory, from shapes alone.

A prepared model is made on the meta device and one training step of it is run there, counting live
tensors (`lrqat.training.meta_step`). The parts say what was alive at the fullest moment of the
step, so they add up to the peak: at the end of a forward pass there are no gradients yet, and at
its backward pass the logits are gone.

    frozen       Phi0 in its downcast form
    floating     what stays unquantized
    adapters     A and B (of the method `full`: the weights), float32
    scales       scales, minima, zero-points, and those that give the original weights back
    gradients    of what is trained
    optimizer    two moments of what is trained, in float32, or in 8 bits
    activations  what the forward pass keeps for the backward pass
    logits       of one chunk, and the gradient of the features
    working      the weight that is being used, its gradient, their temporaries; with gradient
                 checkpointing also the activations of the layer that is computed again
    teacher      a second model, or the features of a teacher that is the model itself

Not counted: a GPU's context and a kernel's workspace. What else a run needs, before and after its
steps, is in `lrqat.training.phases`.
"""

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrqat.layers.methods import METHODS
from lrqat.models import hub
from lrqat.models.preparation import Settings, freeze_scales, prepare, quantized_layers
from lrqat.models.surgery import SurgeryPlan
from lrqat.training.config import TrainConfig
from lrqat.training.meta_step import PurposeCounter, run_step, shapes_only
from lrqat.training.model_settings import ModelSettings
from lrqat.training.objectives.losses import Objective
from lrqat.training.objectives.teachers import choose_teacher
from lrqat.training.settings import SELF, ScheduleSettings
from lrqat.training.training_model import enable_checkpointing

_PART_OF = {
    "phi": "frozen",
    "lora_a": "adapters",
    "lora_b": "adapters",
    "scale": "scales",
    "minimum": "scales",
    "zero_point": "scales",
    "unit": "scales",
    "start_scale": "scales",
    "start_minimum": "scales",
}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by purpose at the fullest moment of a step, see the module's text."""

    frozen: int
    floating: int
    adapters: int
    scales: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    working: int
    teacher: int

    @property
    def total(self) -> int:
        """Sum of all."""
        return sum(vars(self).values())

    def to_json(self) -> dict[str, int]:
        """Every part and the total."""
        return {**vars(self), "total": self.total}


def trainable_parameters(plan: SurgeryPlan, weights: Settings, *, trains_scales: bool) -> int:
    """Number of trained values: A, B, scales and minima, or what the method trains instead."""
    method = METHODS[weights.method]
    trains, total = method.trains, 0
    for target in plan.quantized.values():
        if target.settled and method.rounds_inside:
            continue
        if "lora_a" in trains:
            total += weights.rank * sum(target.shape) * target.count
        if "weight" in trains:
            total += target.weights
        if "scale" in trains and trains_scales:
            total += target.groups * (2 if target.grid.minimum else 1)
    return total


def estimate_memory(
    model: Any, plan: SurgeryPlan, config: TrainConfig, dtype: torch.dtype
) -> MemoryEstimate:
    """Estimate the peak of a training step on one device.

    A model whose step depends on values (a mixture of experts decides by them who computes what)
    cannot be run without any; its activations are then taken by a rule of thumb.

    Args:
        model: on any device, also meta; its class and configuration are used, nothing is changed.
        plan: from `plan_surgery(model, ...)`.
        config: the settings, resolved.
        dtype: compute type.

    Raises:
        ModelError: the teacher is a model that cannot be found.
    """
    counter = PurposeCounter()
    with shapes_only():
        student = _prepared(model, plan, config, dtype)
        _hold(counter, student, config.optimizer)
        rows = {"input_ids": _tensor(config, dtype=torch.long)}
        teacher = second = None
        choice = choose_teacher(config, student, kv_bits=config.kv_bits)
        if choice is not None:
            # Held also where a cache answers in its place: KL is measured against it in the end.
            second = _second_model(counter, choice.second, student, config, dtype)
            teacher = choice.teacher(second)
            rows |= _cached_rows(config, config.teacher_top_k) if choice.cached else {}
        objective = Objective(teacher, config.cross_entropy_weight)
        student.train()
        if config.gradient_checkpointing:
            enable_checkpointing(student)
        resident = counter.live.copy()
        try:
            run_step(counter, student, objective, rows, batches=config.gradient_accumulation)
            peak = counter.peak
        except RuntimeError:  # an operator that needs values, and that nobody answers for
            peak = resident + _rule_of_thumb(student, plan, config, dtype)
    return MemoryEstimate(**{name: peak[name] for name in MemoryEstimate.__dataclass_fields__})


def on_meta(kind: Any, config: Any, dtype: torch.dtype) -> Any:
    """A model of the class `kind` without memory, tied as it will be."""
    with torch.device("meta"):
        model = kind(copy.deepcopy(config)).to(dtype)
    model.tie_weights()
    return model


def prepared_on_meta(model: Any, plan: SurgeryPlan, config: TrainConfig, dtype: torch.dtype) -> Any:
    """What `prepare` makes of a model of this class and configuration, without memory."""
    with shapes_only():
        return _prepared(model, plan, config, dtype)


def _prepared(model: Any, plan: SurgeryPlan, config: TrainConfig, dtype: torch.dtype) -> Any:
    student = prepare(on_meta(type(model), model.config, dtype), plan, config)
    if not config.trains_scales:
        freeze_scales(student)
    if config.by_blocks:
        for _, weight in quantized_layers(student):
            weight.forget_original()
    return student


def _hold(counter: PurposeCounter, student: Any, optimizer: str) -> None:
    """Count what is there from step to step."""
    counter.hold([*student.parameters(), *student.buffers()], "floating")
    trained = [p for p in student.parameters() if p.requires_grad]
    counter.hold(trained, "adapters")
    for tensors in (student.named_parameters(), student.named_buffers()):
        for name, tensor in tensors:
            part = _PART_OF.get(name.rpartition(".")[2])
            if part:
                counter.hold([tensor], part)
    moment = torch.uint8 if optimizer == "adamw8bit" else torch.float32
    # Kept by the student, so that they live as long.
    student.moments = [torch.empty_like(p, dtype=moment) for p in trained for _ in range(2)]
    counter.hold(student.moments, "optimizer")


def _second_model(
    counter: PurposeCounter,
    name: str | None,
    student: Any,
    settings: ModelSettings,
    dtype: torch.dtype,
) -> Any:
    """The model that is held beside the student, on meta; None if there is none."""
    if name is None:
        return None
    if name == SELF:
        model = on_meta(type(student), student.config, dtype)
    else:
        trusted = settings.trust_remote_code
        own = hub.load_config(name, trust_remote_code=trusted)
        model = on_meta(type(hub.meta_model(own, trust_remote_code=trusted)), own, dtype)
    counter.hold([*model.parameters(), *model.buffers()], "teacher")
    return model


def _cached_rows(schedule: ScheduleSettings, k: int) -> dict[str, Tensor]:
    """What a teacher's cache adds to the rows of a batch, in the cache's types."""
    return {
        "teacher_logprobs": _tensor(schedule, k, dtype=torch.float16),
        "teacher_ids": _tensor(schedule, k, dtype=torch.int32),
    }


def _tensor(schedule: ScheduleSettings, *more: int, dtype: torch.dtype) -> Tensor:
    shape = (schedule.batch_size, schedule.sequence_length, *more)
    return torch.zeros(shape, dtype=dtype, device="meta")


def values_of_a_layer(text: Any) -> int:
    """Values of a token that a layer keeps for its backward pass: 17 of hidden and 3 of FFN size.

    Args:
        text: the configuration of the text model.
    """
    ffn = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    # Of a mixture of experts: what each token passes through.
    experts = getattr(text, "num_experts_per_tok", 1) or 1
    return int(17 * text.hidden_size + 3 * ffn * experts)


def _rule_of_thumb(
    student: Any, plan: SurgeryPlan, schedule: ScheduleSettings, dtype: torch.dtype
) -> Counter[str]:
    """What a step adds, from sizes: 17 hidden-sized and 3 FFN-sized values per token and layer."""
    text = student.config.get_text_config()
    layers, a_layer = text.num_hidden_layers, values_of_a_layer(text)
    values = layers * a_layer
    if schedule.gradient_checkpointing:
        values = layers * text.hidden_size + a_layer
    tokens = schedule.batch_size * schedule.sequence_length
    # The eager code multiplies by one expert after the other, and each weight is kept for backward.
    stacks = sum(t.weights for t in plan.quantized.values() if t.count > 1)
    largest = max(t.shape[0] * t.shape[1] for t in plan.quantized.values())
    return Counter(
        gradients=4 * sum(p.numel() for p in student.parameters() if p.requires_grad),
        activations=(tokens * values + stacks) * dtype.itemsize,
        working=2 * largest * dtype.itemsize,
    )
