"""Static activation ranges, measured on text before training.

Two passes over the same tokens: the smallest and largest input of every layer, then a histogram
between them. From the histogram a method chooses the range:

    minmax       covers everything that was seen
    percentile   leaves out 0.005 % at either end
    mse          the fraction of minmax with the least squared rounding error

The model runs as it is given, so ranges are best measured after `prepare` and before `attach`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrqat.activations.grids import ActivationRange, quantize, range_of
from lrqat.activations.table import RANGE_METHODS, ActivationGrid
from lrqat.errors import DataError, GridError, UserError
from lrqat.layers.modes import evaluating

BINS = 2048
CANDIDATES = 100  # fractions of minmax that the mse search tries, as in lrqat.init.scale_search
TAIL = 5e-5


@dataclass
class InputHistogram:
    """The inputs of a layer.

    Attributes:
        low: smallest value, float32 ().
        high: largest value, float32 ().
        counts: int64 (BINS,): values in each of equal parts of [low, high].
    """

    low: Tensor
    high: Tensor
    counts: Tensor

    def centres(self) -> Tensor:
        """Middle of each bin: float32 (BINS,)."""
        steps = torch.arange(BINS, device=self.low.device) + 0.5
        return self.low + (self.high - self.low) * (steps / BINS)


def min_max(seen: InputHistogram, grid: ActivationGrid) -> tuple[Tensor, Tensor]:
    """Everything that was seen: the ends, float32 () each."""
    del grid
    return seen.low, seen.high


def percentile(seen: InputHistogram, grid: ActivationGrid) -> tuple[Tensor, Tensor]:
    """All but the share `TAIL` at either end."""
    del grid
    below = seen.counts.cpu().cumsum(0).double() / int(seen.counts.sum())
    width = (seen.high - seen.low) / BINS
    first = int((below <= TAIL).sum())  # whole bins that may be left out
    last = int((below < 1 - TAIL).sum()) + 1
    return seen.low + width * first, torch.minimum(seen.low + width * last, seen.high)


def least_squares(seen: InputHistogram, grid: ActivationGrid) -> tuple[Tensor, Tensor]:
    """The fraction of everything with the least squared rounding error."""
    values, weights = seen.centres(), seen.counts.float()
    best, least = (seen.low, seen.high), torch.inf
    for step in range(CANDIDATES, 0, -1):
        low, high = (end * (step / CANDIDATES) for end in (seen.low, seen.high))
        rounded = quantize(values, grid, range_of(low, high, grid))
        error = float((weights * (rounded - values).square()).sum())
        if error < least:
            best, least = (low, high), error
    return best


def calibrate(
    model: Any,
    grid: ActivationGrid,
    names: Sequence[str],
    batches: Sequence[Tensor] | None,
    method: str = "mse",
) -> dict[str, ActivationRange]:
    """Choose a static range for the input of every module of `names`.

    Args:
        model: a causal LM called as `model(input_ids=...)`; put in evaluation mode while it runs.
        grid: a static grid.
        names: modules whose first argument is measured.
        batches: int64 (batch, tokens) each; gone through twice.
        method: a name in `RANGE_METHODS`.

    Returns:
        name -> float32 s and z of shape (), for `lrqat.activations.quantizer.attach`.

    Raises:
        UserError: no batches; an unknown method; a module that no token reached.
        DataError: an input that is not finite.
        GridError: a grid that needs no ranges.
    """
    if not grid.static:
        raise GridError(f"the activation grid {grid.name} measures its own ranges as it goes")
    if not batches:
        raise UserError(
            f"--activations {grid.name} needs --data: its ranges are fixed before training, by "
            "measuring them on text. Give --data, or choose a grid that measures as it goes "
            f"(--activations int{grid.bits}-token)"
        )
    if method not in RANGE_METHODS:
        raise UserError(
            f"range method {method!r} is unknown; choose one of {', '.join(RANGE_METHODS)}"
        )
    extremes = _extremes(model, names, batches)
    histograms = _histograms(model, extremes, batches)
    choose = RANGE_METHODS[method]
    return {name: range_of(*choose(seen, grid), grid) for name, seen in histograms.items()}


def _extremes(
    model: Any, names: Sequence[str], batches: Sequence[Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def record(name: str, x: Tensor) -> None:
        low, high = x.min(), x.max()
        if name in found:
            low, high = torch.minimum(low, found[name][0]), torch.maximum(high, found[name][1])
        found[name] = (low, high)

    _observe(model, names, batches, record)
    for name in names:
        if name not in found:
            raise UserError(
                f"no token of the calibration text reached {name}, so it has no range; give more "
                f"--data, or --keep {name!r}"
            )
        if not all(bool(end.isfinite()) for end in found[name]):
            raise DataError(
                f"the inputs of {name} are not all finite on the calibration text; use an intact "
                "copy of the model, or --dtype float32"
            )
    return found


def _histograms(
    model: Any, extremes: dict[str, tuple[Tensor, Tensor]], batches: Sequence[Tensor]
) -> dict[str, InputHistogram]:
    seen = {
        name: InputHistogram(low, high, torch.zeros(BINS, dtype=torch.int64, device=low.device))
        for name, (low, high) in extremes.items()
    }

    def record(name: str, x: Tensor) -> None:
        histogram = seen[name]
        width = (histogram.high - histogram.low).clamp(min=torch.finfo(x.dtype).tiny)
        bins = ((x.flatten() - histogram.low) / width * BINS).long().clamp_(0, BINS - 1)
        histogram.counts += torch.bincount(bins, minlength=BINS)

    _observe(model, list(extremes), batches, record)
    return seen


@torch.no_grad()
def _observe(
    model: Any,
    names: Sequence[str],
    batches: Sequence[Tensor],
    record: Callable[[str, Tensor], None],
) -> None:
    """Run `batches` and hand every input of `names` to `record`, as float32."""
    device = next(model.parameters()).device
    with _listening(model, names, record), evaluating(model):
        for ids in batches:
            model(input_ids=ids.to(device), use_cache=False)


@contextmanager
def _listening(
    model: nn.Module, names: Sequence[str], record: Callable[[str, Tensor], None]
) -> Iterator[None]:
    def hook_of(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, args: record(name, args[0].detach().float())

    hooks = [model.get_submodule(n).register_forward_pre_hook(hook_of(n)) for n in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
