"""How fast this machine computes what a run consists of: measured in a second, before the run.

A part of the run's commonest weight is made, of random numbers, on its grid and by its method, and
what a step does with it is timed in the type that steps are computed in. So there is nothing here
about processors and their instructions, and nothing of what a grid costs.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrqat.architectures import is_output_head
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.layers.modes import full_precision
from lrqat.layers.weight import QuantizedWeight
from lrqat.models.preparation import prepare
from lrqat.models.preparation_settings import Settings
from lrqat.models.surgery import SurgeryPlan, Target

_WEIGHTS = 1 << 20  # at most of a part that is timed: what a core does in milliseconds
_WEIGHTS_ELSEWHERE = 1 << 24  # less does not fill a GPU
_TOKENS, _FEW_TOKENS = 512, 8
_ROWS, _VALUES = 64, 1 << 18
_LEAST_SECONDS, _LEAST_TIMES = 0.05, 3  # of one measurement, whose fastest counts


@dataclass(frozen=True)
class Pace:
    """Seconds on this machine, in the compute type unless it says otherwise.

    Attributes:
        product: of a weight's product with a token.
        exact_product: the same in float32, in which perplexity is measured.
        building: of a weight's way onto its grid in a step of the model, forward and backward, with
            the gradients of what is trained, whatever the number of tokens.
        thawed: the same in a step of a block, where the weight itself is trained; with its update.
        head: as `building`, of the output head; 0 where it is on no grid.
        original: of a weight's way back to full precision, as a model needs it that is its own
            teacher.
        original_head: as `original`, of the output head.
        attention: of a channel where a token looks at a token, forward and backward.
        value: of a value that is computed by itself, forward and backward.
        logit: of a logit in a divergence from a teacher's, forward and backward.
    """

    product: float
    exact_product: float
    building: float
    thawed: float
    head: float
    original: float
    original_head: float
    attention: float
    value: float
    logit: float


def measure_pace(
    surgery: SurgeryPlan, settings: Settings, *, dtype: torch.dtype, device: str
) -> Pace:
    """Measure.

    Args:
        surgery: which weights go on which grid.
        settings: how they are prepared.
        dtype: compute type.
        device: torch device name.
    """
    place = torch.device(device)
    with torch.random.fork_rng(devices=[] if place.type == "cpu" else None):
        return _measured(_Timer(surgery, settings, dtype, place))


def _measured(timer: "_Timer") -> Pace:
    target = _commonest(timer.surgery)
    product, exact = timer.product(target, timer.dtype), timer.product(target, torch.float32)

    def building(of: Target | None = target, **how: bool) -> float:
        if of is None:
            return 0.0
        # Few tokens, so that little has to be taken away.
        passes = 1 if how.get("exact") else 3
        built = timer.weight(of, _FEW_TOKENS, **how)
        return max(0.0, built - passes * _FEW_TOKENS * product) if built else 0.0

    head = next((t for n, t in timer.surgery.quantized.items() if is_head(n, t)), None)
    return Pace(
        product=product,
        exact_product=exact,
        building=building(),
        thawed=building(thaw=True),
        head=building(head),
        original=building(exact=True),
        original_head=building(head, exact=True),
        attention=timer.attention(),
        value=timer.value(),
        logit=timer.logit(),
    )


class _Timer:
    """Measures the parts of a step of one run."""

    def __init__(
        self, surgery: SurgeryPlan, settings: Settings, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.surgery, self.dtype, self._device = surgery, dtype, device
        self._settings = replace(settings, range_init="minmax", lora_init="random")

    def product(self, target: Target, dtype: torch.dtype) -> float:
        """Seconds of a weight's product with a token."""
        rows, columns = self._part_of(target)
        matrix, x = self._random(rows, columns, dtype), self._random(_TOKENS, columns, dtype)
        return self._seconds(lambda: F.linear(x, matrix)) / (_TOKENS * rows * columns)

    def weight(
        self, target: Target, tokens: int, *, thaw: bool = False, exact: bool = False
    ) -> float:
        """Seconds that a weight takes in a step with some tokens, their products included.

        Args:
            target: what it is on.
            tokens: how many.
            thaw: train the weight itself, and count its update.
            exact: go forward only, with the original weight; 0 if there is no way back to it.
        """
        rows, columns = self._part_of(target)
        layer = self._layer(target, rows, columns, thaw=thaw)
        if exact and not getattr(layer, "keeps_original", False):
            return 0.0
        trained = [p for p in layer.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained) if thaw and trained else None
        x = self._random(tokens, columns, self.dtype).requires_grad_()

        def step() -> None:
            layer(x).sum().backward()
            if optimizer is not None:
                optimizer.step()

        def only_forward() -> None:
            with full_precision(layer):
                layer(x)

        return self._seconds(only_forward if exact else step) / (rows * columns)

    def attention(self) -> float:
        """Seconds of a channel where a token looks at a token, forward and backward."""
        shape = (1, 4, _TOKENS, 64)
        x = torch.randn(shape, device=self._device).to(self.dtype).requires_grad_()

        def attend() -> None:
            F.scaled_dot_product_attention(x, x, x, is_causal=True).sum().backward()

        return self._seconds(attend) / (x.numel() * _TOKENS)

    def value(self) -> float:
        """Seconds of a value that comes of others at its own place, forward and backward."""
        x = self._random(_TOKENS, _VALUES // _TOKENS, self.dtype).requires_grad_()
        return self._seconds(lambda: (F.silu(x) * x).sum().backward()) / x.numel()

    def logit(self) -> float:
        """Seconds of a logit, from the head to the divergence from a teacher, and back."""
        x = self._random(_ROWS, _VALUES // _ROWS, self.dtype).requires_grad_()
        other = x.detach().flip(0)

        def diverge() -> None:
            student = F.log_softmax(x, -1, dtype=torch.float32)
            teacher = F.log_softmax(other, -1, dtype=torch.float32)
            F.kl_div(student, teacher, reduction="sum", log_target=True).backward()

        return self._seconds(diverge) / x.numel()

    def _layer(self, target: Target, rows: int, columns: int, *, thaw: bool) -> Any:
        linear = nn.Linear(columns, rows, bias=False, dtype=self.dtype, device=self._device)
        model: Any = nn.ModuleDict({"layer": linear})
        plain = replace(
            target, shape=(rows, columns), kind=WeightKind.LINEAR, count=1, tied_to=None
        )
        settings = replace(self._settings, rank=min(self._settings.rank, rows, columns))
        settings = replace(settings, phi="fp32") if thaw else settings
        prepare(model, replace(self.surgery, quantized={"layer": plain}), settings)
        if thaw and isinstance(model["layer"], QuantizedWeight):
            model["layer"].thaw()
        return model["layer"]

    def _part_of(self, target: Target) -> tuple[int, int]:
        """As many rows as are timed, and columns."""
        rows, columns = target.shape
        most = _WEIGHTS if self._device.type == "cpu" else _WEIGHTS_ELSEWHERE
        return max(1, min(rows, most // columns)), columns

    def _random(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(rows, columns, device=self._device).to(dtype)

    def _seconds(self, do: Callable[[], Any]) -> float:
        """The fastest of some times: whatever else the machine does makes it slower only."""
        do()
        times: list[float] = []
        while len(times) < _LEAST_TIMES or sum(times) < _LEAST_SECONDS:
            self._wait()
            start = time.perf_counter()
            do()
            self._wait()
            times.append(time.perf_counter() - start)
        return min(times)

    def _wait(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)


def is_head(name: str, target: Target) -> bool:
    """Whether a weight of a plan is the output head, maybe with the embedding."""
    return bool(target.tied_to) or is_output_head(name)


def _commonest(surgery: SurgeryPlan) -> Target:
    """The kind of weight that there is most of, and that is trained if any is."""
    held: Counter[Target] = Counter()
    for target in surgery.quantized.values():
        held[target] += target.weights
    trained = {target: weights for target, weights in held.items() if not target.settled}
    return max(trained or held, key=held.__getitem__)
