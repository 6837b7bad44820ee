"""Where the weights of a block start: at round-to-nearest, or where rounding errors make up."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lrqat.init.second_order import compensated
from lrqat.layers.weight import QuantizedWeight


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
