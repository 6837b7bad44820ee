"""What every weight of a model costs on every grid that it can be on, in bytes and in KL."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lrqat.budget.allotment import Choice, allot
from lrqat.budget.curvature import Curvature, measure_curvature
from lrqat.budget.rounding import matrices, parameter_of, rounding
from lrqat.budget.sensitivity import losses
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.grids.grid import Grid, find_grid
from lrqat.models.surgery import SurgeryPlan, Target

SEQUENCE_LENGTH, SEQUENCES = 256, 8
_MOST_LOGITS = 1 << 26  # that the KL of a mix is measured on: 256 MB in float32


@dataclass(frozen=True)
class Allotment:
    """A grid for every weight.

    Attributes:
        grids: name -> name of its grid.
        nbytes: of the file.
        estimate: KL in nats a token, the sum over the weights.
        kl: measured on the model, or None.
        losses: name -> what the weight adds to `estimate`.
    """

    grids: dict[str, str]
    nbytes: int
    estimate: float
    kl: float | None = None
    losses: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Prices:
    """What every weight costs on every grid.

    Attributes:
        targets: name -> the weight.
        choices: name -> grid, bytes and KL.
        importance: name -> (count, in), what start scales are weighted with.
        other_bytes: of the file, besides these weights.
    """

    targets: dict[str, Target]
    choices: dict[str, list[Choice]]
    importance: dict[str, Tensor]
    other_bytes: int

    @property
    def least_bytes(self) -> int:
        """Of the smallest file."""
        return self.other_bytes + sum(min(c.nbytes for c in each) for each in self.choices.values())

    @property
    def most_bytes(self) -> int:
        """Of the file that loses least."""
        best = (min(each, key=lambda c: (c.loss, c.nbytes)) for each in self.choices.values())
        return self.other_bytes + sum(each.nbytes for each in best)

    def allot(self, nbytes: int) -> Allotment:
        """The least loss in a file of at most `nbytes`. Raises UserError if that is too small."""
        chosen = allot(self.choices, nbytes - self.other_bytes)
        return Allotment(
            {name: each.grid for name, each in chosen.items()},
            self.other_bytes + sum(each.nbytes for each in chosen.values()),
            sum(each.loss for each in chosen.values()),
            losses={name: each.loss for name, each in chosen.items()},
        )

    def price(self, grids: Mapping[str, str]) -> Allotment | None:
        """What other grids for the same weights cost, or None if one was not priced."""
        chosen = []
        for name, of_weight in self.choices.items():
            each = next((c for c in of_weight if c.grid == grids.get(name)), None)
            if each is None:
                return None
            chosen.append(each)
        nbytes = self.other_bytes + sum(each.nbytes for each in chosen)
        return Allotment(dict(grids), nbytes, sum(each.loss for each in chosen))

    def measured(self, model: Any, allotment: Allotment, sequences: Tensor) -> Allotment:
        """`allotment` with the KL that its rounded weights have on a text.

        Args:
            model: the model that was priced.
            allotment: grids for its weights.
            sequences: int64 (sequences, tokens).
        """
        grids = {name: find_grid(grid) for name, grid in allotment.grids.items()}
        few = _few(sequences, model.config.get_text_config().vocab_size).to(model.device)
        with torch.no_grad():
            base = model(few).logits.float().log_softmax(-1)
            with rounding(model, self.targets, grids, self.importance):
                ours = model(few).logits.float().log_softmax(-1)
        return replace(allotment, kl=float((base.exp() * (base - ours)).sum(-1).mean()))


def find_prices(
    model: Any,
    surgery: SurgeryPlan,
    grids: Sequence[Grid],
    sequences: Tensor,
    *,
    other_bytes: int,
    progress: Any = None,
) -> Prices:
    """Price every weight of a plan.

    Args:
        model: the causal LM in full precision, left as it was.
        surgery: which weights; the grids that it has for them are not looked at.
        grids: what they may be on; those that rows do not fit are left out.
        sequences: int64 (sequences, tokens) of text.
        other_bytes: of the file, besides these weights.
        progress: wraps iterables; None shows nothing.

    Raises:
        ModelError: a gradient is not finite.
    """
    parameters = {name: parameter_of(model, name, t) for name, t in surgery.quantized.items()}
    curvatures = measure_curvature(model, parameters, sequences, progress=progress)
    choices: dict[str, list[Choice]] = {}
    importance: dict[str, Tensor] = {}
    for name, target in surgery.quantized.items():
        rows, columns = _by_matrix(curvatures[name], target)
        weights = matrices(parameters[name], target)
        fitting = [grid for grid in grids if not grid.refuses(target.shape[1])] or [target.grid]
        sums = dict.fromkeys((grid.name for grid in fitting), 0.0)
        for matrix, r, c in zip(weights, rows, columns, strict=True):
            for grid, loss in losses(matrix, Curvature(r, c), fitting).items():
                sums[grid] += loss
        choices[name] = [
            Choice(grid.name, replace(target, grid=grid).nbytes, sums[grid.name])
            for grid in fitting
        ]
        importance[name] = columns
    return Prices(dict(surgery.quantized), choices, importance, other_bytes)


def _by_matrix(curvature: Curvature, target: Target) -> tuple[Tensor, Tensor]:
    """Rows (count, out) and columns (count, in), in the order of `matrices`."""
    out, width = target.shape
    rows, columns = curvature.rows, curvature.columns
    if target.kind == WeightKind.CONV1D:  # which keeps (in, out)
        rows, columns = columns, rows
    return rows.reshape(target.count, out), columns.reshape(target.count, width)


def _few(sequences: Tensor, vocabulary: int) -> Tensor:
    return sequences[: max(1, _MOST_LOGITS // (vocabulary * sequences.shape[1]))]
