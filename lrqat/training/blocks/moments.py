"""Second moments of what enters the projections of a block: E[x x^T], (in, in)."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lrqat.init import input_statistics
from lrqat.init.second_order import compensated
from lrqat.layers.weight import QuantizedWeight


def second_moments(
    block: nn.Module, names: Iterable[str], batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Name inside the block -> float32 (in, in), the mean over tokens.

    Args:
        block: called with hidden states alone.
        names: of its projections. A stack of experts does not show what enters it, and has none.
        batches: hidden states, (batch, length, hidden) each.
    """
    wanted = list(names)
    if not wanted:
        return {}
    found = input_statistics.collect(block, wanted, batches, {"moments": _sum_of_products})
    return found["moments"]


@torch.no_grad()
def thaw(weights: Mapping[str, QuantizedWeight], moments: Mapping[str, Tensor]) -> None:
    """Thaw weights that have just been made, where they can from where rounding errors make up.

    Args:
        weights: by name, with their original weights at hand.
        moments: of what enters them; what has none starts from round-to-nearest.
    """
    for name, weight in weights.items():
        if name not in moments:
            weight.thaw()
            continue
        shape = (weight.out_features, weight.in_features)
        original = weight.original(torch.empty(shape, device=weight.scale.device))
        weight.thaw(compensated(original, weight.stored(), weight.grid, moments[name]))


def _sum_of_products(x: Tensor) -> Tensor:
    inputs = x.reshape(-1, x.shape[-1]).float()
    return inputs.T @ inputs
