"""What a training run needs in memory, from shapes alone.

frozen       Phi0 in its downcast form, and what stays in floating point
trained      A, B, s in float32, with a gradient and two Adam moments each (16 bytes in all)
activations  kept for the backward pass: taken as 17 hidden-sized and 3 FFN-sized values a
             token and layer, without attention matrices (PyTorch's fused attention does not
             keep them); a rule of thumb that has not been held against measurement
logits       three float32 copies of (tokens, vocabulary): logits, log-probabilities, gradient
weight       one W and one block of temporaries of the largest layer, while it runs
teacher      the full-precision model, when distilling
"""

from dataclasses import dataclass
from typing import Any

import torch

from lrqat.config import TrainConfig
from lrqat.downcast import DOWNCASTS
from lrqat.surgery import SurgeryPlan


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by purpose, see the module's text."""

    frozen: int
    trained: int
    activations: int
    logits: int
    weight: int
    teacher: int

    @property
    def total(self) -> int:
        """Sum of all."""
        return sum(vars(self).values())

    def to_json(self) -> dict[str, int]:
        """Every part and the total."""
        return {**vars(self), "total": self.total}


def trainable_parameters(plan: SurgeryPlan, rank: int) -> int:
    """Number of trained values: A, B and the scales."""
    return sum(rank * (out + columns) for out, columns in plan.quantized.values()) + plan.scales


def estimate_memory(
    model: Any, plan: SurgeryPlan, config: TrainConfig, dtype: torch.dtype
) -> MemoryEstimate:
    """Estimate the peak of a training step on one device.

    Args:
        model: on any device, also meta; only shapes are read.
        plan: from `plan_surgery(model, ...)`.
        config: batch, length, rank, phi, teacher.
        dtype: compute type.
    """
    parameters = sum(p.numel() for p in model.parameters())
    width = dtype.itemsize
    floating = (parameters - plan.weights) * width
    text = model.config.get_text_config()
    hidden = text.hidden_size
    ffn = getattr(text, "intermediate_size", None) or 4 * hidden
    tokens = config.batch_size * config.sequence_length
    largest = max(out * columns for out, columns in plan.quantized.values())
    return MemoryEstimate(
        frozen=plan.weights * DOWNCASTS[config.phi].dtype.itemsize + floating,
        trained=16 * trainable_parameters(plan, config.rank),
        activations=tokens * text.num_hidden_layers * (17 * hidden + 3 * ffn) * width,
        logits=3 * 4 * tokens * text.vocab_size,
        weight=largest * (width + 4),
        teacher=0 if config.teacher == "none" else parameters * width,
    )
