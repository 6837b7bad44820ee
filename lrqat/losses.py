"""What training minimises: cross-entropy on the text, or KL to a full-precision teacher."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, input_ids: Tensor) -> Tensor:
    """Mean next-token cross-entropy (nats) in float32.

    Args:
        logits: (batch, tokens, vocabulary).
        input_ids: (batch, tokens), the same text.
    """
    predicted = logits[:, :-1].flatten(0, 1).float()
    return F.cross_entropy(predicted, input_ids[:, 1:].flatten())


def distillation(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean KL(teacher || student) over all positions (nats) in float32.

    Args:
        logits: student, (batch, tokens, vocabulary).
        teacher_logits: the same shape, no gradient.
    """
    student = F.log_softmax(logits.flatten(0, 1).float(), -1)
    teacher = F.log_softmax(teacher_logits.flatten(0, 1).float(), -1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class Objective:
    """The loss of a batch: distillation when there is a teacher, else cross-entropy.

    Attributes:
        teacher: a frozen causal LM with the student's vocabulary, or None.
    """

    def __init__(self, teacher: Any = None) -> None:
        self.teacher = teacher

    def __call__(self, model: Any, input_ids: Tensor) -> Tensor:
        """Scalar loss of `model` on `input_ids` (batch, tokens)."""
        logits = model(input_ids=input_ids, use_cache=False).logits
        if self.teacher is None:
            return cross_entropy(logits, input_ids)
        with torch.no_grad():
            teacher_logits = self.teacher(input_ids=input_ids, use_cache=False).logits
        return distillation(logits, teacher_logits)
