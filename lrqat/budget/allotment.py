"""Which of its possible grids each weight gets, so that what is lost is least within some bytes.

The losses of weights add up, and so do their bytes: a multiple-choice knapsack, which dynamic
programming over sizes solves exactly but for the bytes that one cell of its table stands for, about
a 30,000th of what there is to share out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lrqat.errors import UserError

_CELLS = 1 << 15  # sizes that the dynamic program tells apart


@dataclass(frozen=True)
class Choice:
    """What a weight costs on one grid.

    Attributes:
        grid: its name.
        nbytes: of the weight in the file.
        loss: what it adds to the KL, in nats a token.
    """

    grid: str
    nbytes: int
    loss: float


def allot(choices: Mapping[str, Sequence[Choice]], nbytes: int) -> dict[str, Choice]:
    """The choice of every weight with the least sum of losses within `nbytes`.

    Equal inputs give equal results; of two allotments that lose the same, one is taken by the
    order of `choices`.

    Args:
        choices: weight -> what it can be.
        nbytes: for all weights together.

    Raises:
        UserError: the smallest choices do not fit.
    """
    least = sum(min(each.nbytes for each in of_weight) for of_weight in choices.values())
    if least > nbytes:
        raise UserError(
            f"the weights take {least:,} bytes on their smallest grids, and {nbytes:,} are left "
            "for them; ask for a larger size, or allow smaller grids"
        )
    useful = [_useful(of_weight) for of_weight in choices.values()]
    chosen = _knapsack(useful, nbytes)
    return dict(zip(choices, chosen, strict=True))


def _useful(choices: Sequence[Choice]) -> list[Choice]:
    """Those that no other beats in both, from the smallest to the largest."""
    kept: list[Choice] = []
    for each in sorted(choices, key=lambda c: (c.nbytes, c.loss, c.grid)):
        if not kept or each.loss < kept[-1].loss:
            kept.append(each)
    return kept


def _knapsack(weights: list[list[Choice]], nbytes: int) -> list[Choice]:
    """Exact but for the bytes of a cell, by which every step up is rounded up."""
    smallest = [of_weight[0] for of_weight in weights]
    spare = nbytes - sum(each.nbytes for each in smallest)
    most = sum(of_weight[-1].nbytes - of_weight[0].nbytes for of_weight in weights)
    if spare >= most:
        return [of_weight[-1] for of_weight in weights]
    cell = max(1, -(-spare // _CELLS))
    size = spare // cell + 1
    best = np.zeros(size)
    taken = np.zeros((len(weights), size), dtype=np.int16)
    for i, of_weight in enumerate(weights):
        reached = best + of_weight[0].loss
        for k, each in enumerate(of_weight[1:], start=1):
            step = -(-(each.nbytes - of_weight[0].nbytes) // cell)
            if step >= size:
                break
            better = best[: size - step] + each.loss
            wins = better < reached[step:]
            reached[step:][wins] = better[wins]
            taken[i, step:][wins] = k
        best = reached
    return _walk_back(weights, taken, cell)


def _walk_back(weights: list[list[Choice]], taken: np.ndarray, cell: int) -> list[Choice]:
    chosen: list[Choice] = []
    left = taken.shape[1] - 1
    for of_weight, of_sizes in zip(reversed(weights), reversed(taken), strict=True):
        each = of_weight[of_sizes[left]]
        left -= -(-(each.nbytes - of_weight[0].nbytes) // cell)
        chosen.append(each)
    return chosen[::-1]
