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
  door, and never what enters `down_proj`. `lrqat.imatrix_file` reads their entries from a file.

Source: IMatrixCollector::collect_imatrix in tools/imatrix/imatrix.cpp of llama.cpp.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lrqat.errors import DataError, ModelError, UserError
from lrqat.evaluating import evaluating
from lrqat.methods import LoRALinear

# Tokens squared at a time: keeps the float64 copy of a wide input to a few megabytes.
_BLOCK_TOKENS = 128
_Projection = nn.Linear | Conv1D | LoRALinear


@torch.no_grad()
def collect(
    model: nn.Module,
    modules: Iterable[str],
    batches: Iterable[Tensor],
    progress: Any = None,
) -> dict[str, Tensor]:
    """Mean of x_j^2 over all tokens, for every input channel of every named projection.

    The model runs in evaluation mode, and is left as it was. In a distributed run every rank must
    be given the same batches: nothing is exchanged.

    Args:
        model: a causal LM, or any module called with a batch alone.
        modules: names of `nn.Linear` or transformers `Conv1D` modules whose input is (..., in).
        batches: int64 (batch, tokens) each, without padding, moved to the model's device here.
        progress: wraps the iterable of batches (for one: `tqdm.tqdm`); None shows nothing.

    Returns:
        Module name -> float32 (in,), finite and >= 0, on the module's device; sums are float64.

    Raises:
        UserError: a name that is no such projection.
        DataError: a projection that no token reached.
        ModelError: an input that is not finite.
    """
    sums = {name: _InputSquares(_projection(model, name)) for name in dict.fromkeys(modules)}
    device = next(model.parameters()).device
    with evaluating(model), _watching(model, sums):
        for batch in progress(batches) if progress else batches:
            model(batch.to(device))
    return {name: squares.mean(name) for name, squares in sums.items()}


class _InputSquares:
    """Sum of squares (in,) in float64 and number of tokens of one projection."""

    def __init__(self, module: _Projection) -> None:
        columns = module.nx if isinstance(module, Conv1D) else module.in_features
        device = next(module.parameters()).device
        self.total = torch.zeros(columns, dtype=torch.float64, device=device)
        self.tokens = 0

    def add(self, squares: Tensor, tokens: int) -> None:
        self.total += squares.to(self.total.device)
        self.tokens += tokens

    def mean(self, name: str) -> Tensor:
        if not self.tokens:
            raise DataError(f"no token reached {name}; give more text to measure importance on")
        mean = (self.total / self.tokens).float()
        if not torch.isfinite(mean).all():
            raise ModelError(
                f"the inputs of {name} hold NaN or infinity; use an intact copy of the model, or "
                "--dtype float32 or bfloat16"
            )
        return mean


class _LastInput:
    """Squares of the tensor seen last, so that q, k and v, which read the same one, share them."""

    def __init__(self) -> None:
        self._seen: tuple[Tensor, int] | None = None
        self._squares = torch.empty(0)

    def squares(self, x: Tensor) -> Tensor:
        """Sum of x^2 over the tokens of x (..., in): float64 (in,)."""
        # Tensors of inference mode count no versions: a change in place could not be seen.
        version = -1 if x.is_inference() else x._version
        seen = self._seen
        if version < 0 or seen is None or seen[0] is not x or seen[1] != version:
            self._seen, self._squares = (x, version), _sum_of_squares(x)
        return self._squares


def _sum_of_squares(x: Tensor) -> Tensor:
    total = torch.zeros(x.shape[-1], dtype=torch.float64, device=x.device)
    for block in x.detach().reshape(-1, x.shape[-1]).split(_BLOCK_TOKENS):
        # A copy even of float64: the square must not be written into the model's own tensor.
        total += block.to(torch.float64, copy=True).square_().sum(0)
    return total


@contextmanager
def _watching(model: nn.Module, sums: dict[str, _InputSquares]) -> Iterator[None]:
    last = _LastInput()

    def hook_of(squares: _InputSquares) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            squares.add(last.squares(x), x.numel() // x.shape[-1])

        return hook

    handles = [
        model.get_submodule(name).register_forward_pre_hook(hook_of(squares), with_kwargs=True)
        for name, squares in sums.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _projection(model: nn.Module, name: str) -> _Projection:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise UserError(f"{name!r} is no module of this {type(model).__name__}") from None
    if not isinstance(module, _Projection):
        raise UserError(
            f"{name} is a {type(module).__name__}; importance is measured for nn.Linear and "
            "Conv1D, whose inputs have channels: leave it out"
        )
    return module
