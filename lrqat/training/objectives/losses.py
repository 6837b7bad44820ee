"""What training minimises, computed a few tokens at a time.

Of one batch, with p the teacher, q the student and x the text:

    cross-entropy   CE = mean over predicted tokens of -log q(x_t | x_<t)
    distillation    KL = mean over all positions of  sum_v p_v (log p_v - log q_v)
    loss            (1 - w) KL + w CE         w = cross_entropy_weight; without a teacher, CE

Where some tokens are only read (`loss_weights` of `lrqat.training.data.blocks`), both are sums over
the positions that predict the others, divided by how many a batch has on average.

Logits of a chunk of positions exist at a time, see `chunks`.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrqat.errors import UserError
from lrqat.layers.modes import evaluating
from lrqat.models.split import Split, split_or_whole
from lrqat.training.objectives.chunks import LossOfChunk, chunked_loss, wide

_NOTHING_TO_PREDICT = -100

FullPrecision = Callable[[Any], AbstractContextManager[Any]]
Positions = slice | Tensor  # consecutive ones, or their numbers


class Targets(Protocol):
    """What a teacher says about one batch, its positions laid end to end."""

    def divergence(self, student: Tensor, positions: Positions) -> Tensor:
        """Sum over `positions` of KL(teacher || student) in nats, a scalar.

        Args:
            student: log-probabilities (positions, vocabulary), float32 or wider.
            positions: which of the batch's batch * tokens positions these are.
        """


class Teacher(Protocol):
    """A source of targets."""

    def targets(self, student: Split, batch: Mapping[str, Tensor]) -> Targets:
        """The targets of `batch`: "input_ids" (batch, tokens) and whatever else its rows have."""


class LogitTargets:
    """Targets from features and a head: the full distribution.

    Args:
        features: (batch, tokens, hidden), without a gradient.
        logits: function from features (n, hidden) to logits (n, vocabulary).
    """

    def __init__(self, features: Tensor, logits: Callable[[Tensor], Tensor]) -> None:
        self._features, self._logits = features.flatten(0, 1), logits

    def divergence(self, student: Tensor, positions: Positions) -> Tensor:
        """Sum over `positions` of KL(teacher || student). Raises UserError: other vocabularies."""
        with torch.no_grad():
            teacher = _log_softmax(self._logits(self._features[positions]))
        if teacher.shape != student.shape:
            raise UserError(
                f"the teacher has a vocabulary of {teacher.shape[-1]} and the model one of "
                f"{student.shape[-1]}; distillation needs the same tokenizer"
            )
        return F.kl_div(student, teacher, reduction="sum", log_target=True)


class TopKTargets:
    """Targets from the k most likely tokens of each position, as `teacher_cache` keeps them.

    All other tokens count as one, called the rest, for the teacher and for the student:

        KL_k = sum over the k tokens of p_v (log p_v - log q_v)  +  p_rest (log p_rest - log q_rest)
        p_rest = 1 - sum of the p_v,  and q_rest likewise, of the same k tokens

    This is the KL divergence of two distributions over k + 1 outcomes. It is never above the full
    KL (log sum inequality), is 0 where p = q, and is the full KL if k is the whole vocabulary.
    How the student spreads what it gives to the rest is not judged. Where stored probabilities
    were rounded to a sum above 1, they are divided by it.

    Args:
        log_probabilities: (batch, tokens, k).
        ids: (batch, tokens, k), integers.
    """

    def __init__(self, log_probabilities: Tensor, ids: Tensor) -> None:
        self._log_probabilities = log_probabilities.flatten(0, 1)
        self._ids = ids.flatten(0, 1)

    def divergence(self, student: Tensor, positions: Positions) -> Tensor:
        """Sum over `positions` of KL_k."""
        ids = self._ids[positions].long()
        teacher = self._log_probabilities[positions].to(student.dtype)
        mass = teacher.exp().sum(-1, keepdim=True)
        teacher = teacher - mass.clamp(min=1).log()
        named = F.kl_div(student.gather(-1, ids), teacher, reduction="sum", log_target=True)
        if ids.shape[-1] == student.shape[-1]:
            return named
        # Summed over the others, since 1 - (sum of the k) has no digits left where that is near 1.
        rest = student.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
        p_rest = (1 - mass).clamp(min=0)
        return named + (torch.xlogy(p_rest, p_rest) - p_rest * rest).sum()


class ModelTeacher:
    """Another model as the teacher.

    Attributes:
        model: a causal LM with the student's vocabulary; frozen and in evaluation mode from here.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)
        self._split: Split | None = None

    @torch.no_grad()
    def targets(self, student: Split, batch: Mapping[str, Tensor]) -> Targets:
        """Run the teacher's backbone on the batch; its head is run in chunks."""
        input_ids = batch["input_ids"]
        self._split = self._split or split_or_whole(self.model, input_ids)
        features = self._split.features(input_ids, batch.get("position_ids"))
        return LogitTargets(features, self._split.logits)


class SelfTeacher:
    """The student with its original weights as the teacher; no second model is held.

    Args:
        full_precision: `lrqat.layers.modes.full_precision`: given the model, a context inside which
            it computes with its original weights.
    """

    def __init__(self, full_precision: FullPrecision) -> None:
        self._full_precision = full_precision

    def targets(self, student: Split, batch: Mapping[str, Tensor]) -> Targets:
        """Run the student's backbone with its original weights, without dropout."""

        def computed(half: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
            with torch.no_grad(), self._full_precision(student.model):
                return half(*inputs)

        with evaluating(student.model):
            features = computed(student.features, batch["input_ids"], batch.get("position_ids"))
        return LogitTargets(features, lambda chunk: computed(student.logits, chunk))


class CachedTeacher:
    """Top-k targets that the rows of the data set bring; see `teacher_cache`."""

    def targets(self, student: Split, batch: Mapping[str, Tensor]) -> Targets:
        """The batch's "teacher_logprobs" and "teacher_ids", each (batch, tokens, k)."""
        return TopKTargets(batch["teacher_logprobs"], batch["teacher_ids"])


class Objective:
    """The loss of a batch.

    The model and the teacher are called as they are, so a wrapper (DistributedDataParallel, FSDP)
    goes around a module whose forward calls this, not around the model alone. Under FSDP, the
    output head belongs to the root unit.

    Attributes:
        teacher: where the targets come from; None: the loss is cross-entropy.
        cross_entropy_weight: w in [0, 1]; has no effect without a teacher.

    Raises:
        UserError: w is outside [0, 1].
    """

    def __init__(self, teacher: Teacher | None = None, cross_entropy_weight: float = 0.0) -> None:
        if not 0 <= cross_entropy_weight <= 1:
            raise UserError(
                f"--cross-entropy-weight {cross_entropy_weight} must be between 0 (distillation "
                "alone) and 1 (cross-entropy alone)"
            )
        self.teacher = teacher if cross_entropy_weight < 1 else None
        self.cross_entropy_weight = 1.0 if self.teacher is None else cross_entropy_weight
        self._split: Split | None = None

    def __call__(
        self, model: Any, input_ids: Tensor, loss_weights: Tensor | None = None, **rows: Tensor
    ) -> Tensor:
        """Scalar loss (nats) of `model` in float32, or wider if its logits are.

        Args:
            model: a causal LM, without a wrapper.
            input_ids: (batch, tokens), at least two tokens.
            loss_weights: (batch, tokens), 0 where what a position predicts is not learned, and one
                value elsewhere; None: everything is learned. No logits are computed where it is 0.
            **rows: what else a batch has: position_ids (batch, tokens) where documents are kept
                apart; for `CachedTeacher`, teacher_logprobs and teacher_ids.
        """
        if self._split is None or self._split.model is not model:
            self._split = split_or_whole(model, input_ids)
        halves = self._split
        targets = None
        if self.teacher is not None:  # first: the student's activations are not yet there
            targets = self.teacher.targets(halves, {"input_ids": input_ids, **rows})
        features = halves.features(input_ids, rows.get("position_ids")).flatten(0, 1)
        learned = None if loss_weights is None else loss_weights.flatten().nonzero().squeeze(1)
        loss_of = self._loss_of_chunk(halves, input_ids, targets, learned)
        with halves.preparing_head(features) as trained:
            loss = chunked_loss(
                loss_of,
                features if learned is None else features[learned],
                trained,
                halves.vocabulary,
                count=input_ids.numel(),
            )
        return loss if loss_weights is None else loss * loss_weights.max()

    def _loss_of_chunk(
        self,
        halves: Split,
        input_ids: Tensor,
        targets: Targets | None,
        learned: Tensor | None = None,
    ) -> LossOfChunk:
        tokens, weight = input_ids.shape[1], self.cross_entropy_weight
        following = F.pad(input_ids[:, 1:], (0, 1), value=_NOTHING_TO_PREDICT).flatten()
        # The sum is divided by all positions, of which one per row predicts nothing; weights of
        # positions allow for it.
        text_weight = weight * tokens / (tokens - 1) if learned is None else weight

        def loss_of(features: Tensor, chunk: slice) -> Tensor:
            positions = chunk if learned is None else learned[chunk]
            student = _log_softmax(halves.logits(features))
            loss = student.new_zeros(())
            if text_weight:
                expected = following[positions]
                loss = loss + text_weight * F.nll_loss(
                    student, expected, ignore_index=_NOTHING_TO_PREDICT, reduction="sum"
                )
            if targets is not None:
                loss = loss + (1 - weight) * targets.divergence(student, positions)
            return loss

        return loss_of


def _log_softmax(logits: Tensor) -> Tensor:
    return F.log_softmax(logits, -1, dtype=wide(logits.dtype))
