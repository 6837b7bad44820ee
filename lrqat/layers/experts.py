"""A stack of experts on a grid, whose weights are built when an expert is called."""

from typing import Any

import torch
from torch import nn

from lrqat.layers.weight import BuildWeight, QuantizedWeight


class LRQATExperts(nn.ModuleList):
    """A stack of experts' weights on a grid, in the place of a 3-D parameter (experts, out, in).

    Indexing it, as the eager code of transformers does (`self.down_proj[expert]`), builds the
    weight of that expert alone.
    """

    def __init__(self, experts: list[QuantizedWeight], dtype: torch.dtype) -> None:
        """Stack `experts`, which give weights of `dtype`."""
        super().__init__(experts)
        self.dtype, self.exact = dtype, False

    def __getitem__(self, index: Any) -> Any:
        weight = super().__getitem__(int(index))
        assert isinstance(weight, QuantizedWeight)
        if self.exact:
            shape = (weight.out_features, weight.in_features)
            return weight.original(torch.empty(shape, dtype=self.dtype, device=weight.scale.device))
        return BuildWeight.apply(weight, self.dtype, *weight.trained().values())
