"""How much each input channel of a projection matters: the mean square of what enters it.

An error d in a row of W changes that row's output on x by d . x, whose mean square, when channels
are taken as uncorrelated, is the sum over j of E[x_j^2] d_j^2. The importance is that weight:

    importance_j = mean over tokens of x_j^2        x (tokens, in)    importance (in,)

It is what llama.cpp calls the importance matrix, over every position and without a window rule.

- A projection: what enters it. Projections that read the same tensor (q, k, v; gate, up) share it.
- The output head: the final hidden states, the same rule; name it like any projection. With tied
  embeddings this is the only use of the table that has input channels.
- An embedding has none: it picks rows. The square of its one-hot input is how often a token occurs,
  which weighs whole rows, and no choice within a row depends on that.
- Experts held as one 3-D parameter (transformers 5, e.g. Qwen3MoeExperts: `gate_up_proj`
  (experts, 2 inner, hidden), `down_proj` (experts, hidden, inner), both (out, in)) are not
  collected: they call no module of their own, so a hook sees the tokens and the routing at their
  door, and never what enters `down_proj`. `lrqat.init.imatrix_file` reads their entries from a
  file.

Source: IMatrixCollector::collect_imatrix in tools/imatrix/imatrix.cpp of llama.cpp.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lrqat.init import input_statistics

# Tokens squared at a time: keeps the float64 copy of a wide input to a few megabytes.
_BLOCK_TOKENS = 128


def collect(
    model: nn.Module, modules: Iterable[str], batches: Iterable[Tensor], progress: Any = None
) -> dict[str, Tensor]:
    """Mean of x_j^2 over all tokens, for every input channel of every named projection.

    Args:
        model: as for `lrqat.init.input_statistics.collect`, which see for errors too.
        modules: names of projections.
        batches: int64 (batch, tokens) each.
        progress: wraps the iterable of batches; None shows nothing.

    Returns:
        Module name -> float32 (in,), finite and >= 0, on the module's device; sums are float64.
    """
    statistics = {"squares": sum_of_squares}
    return input_statistics.collect(model, modules, batches, statistics, progress)["squares"]


def sum_of_squares(x: Tensor) -> Tensor:
    """Sum of x_j^2 over the tokens of x (..., in): float64 (in,)."""
    device = torch.device("cpu") if x.device.type == "mps" else x.device  # MPS has no float64
    total = torch.zeros(x.shape[-1], dtype=torch.float64, device=device)
    for block in x.reshape(-1, x.shape[-1]).split(_BLOCK_TOKENS):
        # A copy even of float64: the square must not be written into the model's own tensor.
        total += block.to(device).to(torch.float64, copy=True).square_().sum(0)
    return total
