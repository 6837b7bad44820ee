"""An embedding on a grid, whose rows are built when they are looked up."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrqat.grids.quantize import dequantize
from lrqat.layers.weight import BuildWeight, QuantizedWeight


class LRQATEmbedding(nn.Module):
    """An embedding on a grid. A tied output head is the same `QuantizedWeight`.

    Only the rows that are looked up are built.

    Attributes:
        table: the weight (vocabulary, hidden); the head itself where they are tied.
        factor: what the rows are multiplied by (Gemma scales its embeddings), or None.
        exact: compute with the full-precision weight instead, see `lrqat.layers.modes`.
    """

    def __init__(
        self, table: QuantizedWeight, dtype: torch.dtype, factor: float | None = None
    ) -> None:
        """Look up rows of `table` in `dtype`."""
        super().__init__()
        self.table, self.dtype, self.exact = table, dtype, False
        # Rounded to the type of the model first, as transformers does.
        self.factor = None if factor is None else torch.tensor(factor, dtype=dtype).item()

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (..., hidden) of ids (...), in the dtype of the model; autocast changes nothing."""
        unique, where = ids.flatten().unique(return_inverse=True)
        rows = self._original(unique) if self.exact else self._rows(unique)
        y = F.embedding(where.view(ids.shape), rows).to(self.dtype)
        return y if self.factor is None else y * self.factor

    def _rows(self, ids: Tensor) -> Tensor:
        part = _RowsOf(self.table, ids)
        return BuildWeight.apply(part, torch.float32, *part.trained().values())

    @torch.no_grad()
    def _original(self, ids: Tensor) -> Tensor:
        table = self.table
        phi = table.downcast.decode(table.phi[ids], table.grid, table.in_features, torch.float32)
        return dequantize(phi, table.start_scales()[ids]).to(table.source_dtype).float()


class _RowsOf(QuantizedWeight):
    """Some rows of another weight; gradients reach it through the indexing."""

    def __init__(self, table: QuantizedWeight, ids: Tensor) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = len(ids), table.in_features
        self.grid, self.downcast, self.scaling = table.grid, table.downcast, table.scaling
        # Plain attributes: these are slices for one use, not parameters of a module.
        zero, unit = table.zero_point, table.unit
        parts: dict[str, Any] = {
            "phi": table.phi[ids],
            "lora_a": table.lora_a[ids],
            "lora_b": table.lora_b,
            "scale": table.scale[ids],
            "minimum": None if table.minimum is None else table.minimum[ids],
            "zero_point": None if zero is None else zero[ids],
            "unit": None if unit is None else unit[ids],
        }
        self.__dict__.update(parts)
