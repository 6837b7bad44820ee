"""What enters a model's projections: sums over tokens, gathered as the model reads text.

A statistic is a function of x (..., in) whose values of single tokens can be summed. Projections
that read the same tensor (q, k, v; gate, up) share the work.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lrqat.errors import DataError, ModelError, UserError
from lrqat.layers.linear import LRQATLinear
from lrqat.layers.lora import LoRALinear
from lrqat.layers.modes import evaluating

Statistic = Callable[[Tensor], Tensor]
_Projection = nn.Linear | Conv1D | LRQATLinear | LoRALinear


@torch.no_grad()
def collect(
    model: nn.Module,
    modules: Iterable[str],
    batches: Iterable[Tensor],
    statistics: Mapping[str, Statistic],
    progress: Any = None,
) -> dict[str, dict[str, Tensor]]:
    """Means over all tokens of what enters every named projection.

    The model runs in evaluation mode, and is left as it was. In a distributed run every rank must
    be given the same batches: nothing is exchanged.

    Args:
        model: a causal LM, or any module called with a batch alone.
        modules: names of `nn.Linear` or transformers `Conv1D` modules whose input is (..., in).
        batches: int64 (batch, tokens) each, without padding, moved to the model's device here.
        statistics: by name; each gives a sum over the tokens of its argument.
        progress: wraps the iterable of batches (for one: `tqdm.tqdm`); None shows nothing.

    Returns:
        Name of the statistic -> module name -> its mean, finite, float32 on the module's device.

    Raises:
        UserError: a name that is no such projection.
        DataError: a projection that no token reached.
        ModelError: an input that is not finite.
    """
    sums = {name: _Sums(_projection(model, name)) for name in dict.fromkeys(modules)}
    device = next(model.parameters()).device
    with evaluating(model), _watching(model, sums, statistics):
        for batch in progress(batches) if progress else batches:
            model(batch.to(device))
    return {
        statistic: {name: of_module.mean(statistic, name) for name, of_module in sums.items()}
        for statistic in statistics
    }


class _Sums:
    """The sums of one projection, and the number of tokens."""

    def __init__(self, module: _Projection) -> None:
        self._device = next(module.parameters()).device
        self._totals: dict[str, Tensor] = {}
        self._tokens = 0

    def add(self, values: Mapping[str, Tensor], tokens: int) -> None:
        self._tokens += tokens
        for name, value in values.items():
            if name in self._totals:
                self._totals[name] += value.to(self._device)
            else:
                self._totals[name] = value.to(self._device, copy=True)

    def mean(self, statistic: str, module: str) -> Tensor:
        if not self._tokens:
            raise DataError(f"no token reached {module}; give more text to measure importance on")
        mean = (self._totals[statistic] / self._tokens).float()
        if not torch.isfinite(mean).all():
            raise ModelError(
                f"the inputs of {module} hold NaN or infinity; use an intact copy of the model, or "
                "--dtype float32 or bfloat16"
            )
        return mean


class _LastInput:
    """Statistics of the tensor seen last, for projections that read the same one."""

    def __init__(self, statistics: Mapping[str, Statistic]) -> None:
        self._statistics = statistics
        self._seen: tuple[Tensor, int] | None = None
        self._values: dict[str, Tensor] = {}

    def values(self, x: Tensor) -> dict[str, Tensor]:
        # Tensors of inference mode count no versions: a change in place could not be seen.
        version = -1 if x.is_inference() else x._version
        seen = self._seen
        if version < 0 or seen is None or seen[0] is not x or seen[1] != version:
            self._seen = (x, version)
            self._values = {name: of(x.detach()) for name, of in self._statistics.items()}
        return self._values


@contextmanager
def _watching(
    model: nn.Module, sums: Mapping[str, _Sums], statistics: Mapping[str, Statistic]
) -> Iterator[None]:
    last = _LastInput(statistics)

    def hook_of(of_module: _Sums) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            of_module.add(last.values(x), x.numel() // x.shape[-1])

        return hook

    handles = [
        model.get_submodule(name).register_forward_pre_hook(hook_of(of_module), with_kwargs=True)
        for name, of_module in sums.items()
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
