"""What enters the projections of a block: the importance of its channels, and second moments."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from lrqat.init import input_statistics
from lrqat.init.importance import sum_of_squares
from lrqat.init.input_statistics import Statistic


@dataclass(frozen=True)
class BlockInputs:
    """What is known of the inputs of a block's projections, by name.

    Attributes:
        importance: (in,) mean square of each channel.
        moments: E[x x^T], (in, in); empty where nobody asks.
    """

    importance: dict[str, Tensor]
    moments: dict[str, Tensor]


def measure_block(
    block: nn.Module, names: Iterable[str], batches: Iterable[Tensor], *, moments: bool
) -> BlockInputs:
    """Run hidden states through a block, and sum up what enters its projections.

    Args:
        block: called with hidden states alone.
        names: of its projections. A stack of experts does not show what enters it, and has none.
        batches: hidden states, (batch, length, hidden) each.
        moments: whether second moments are wanted, too.
    """
    wanted = list(names)
    if not wanted:
        return BlockInputs({}, {})
    statistics: dict[str, Statistic] = {"squares": sum_of_squares}
    if moments:
        statistics["moments"] = _sum_of_products
    found = input_statistics.collect(block, wanted, batches, statistics)
    return BlockInputs(found["squares"], found.get("moments", {}))


def _sum_of_products(x: Tensor) -> Tensor:
    inputs = x.reshape(-1, x.shape[-1]).float()
    return inputs.T @ inputs
