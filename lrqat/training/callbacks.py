"""What a training run shows and watches while it goes."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from lrqat.layers.weight import QuantizedWeight
from lrqat.models.preparation import quantized_layers
from lrqat.progress import tqdm
from lrqat.training.guard import StepGuard
from lrqat.training.states.sharding import whole_parts
from lrqat.training.trackers import Record, record_nothing

_RATE = "rate_"


@torch.no_grad()
def share_changed(model: Any) -> float:
    """Share of the weights whose integer is no longer the one that round-to-nearest gave.

    Of a model that FSDP has sharded, every rank must ask.
    """
    changed = total = 0
    seen = set()
    for part in whole_parts(model):
        for _, layer in quantized_layers(part):
            if id(layer) not in seen:
                seen.add(id(layer))
                changed += _changed(layer)
                total += layer.out_features * layer.in_features
    return changed / max(1, total)


@torch.no_grad()
def shares_changed(model: Any) -> dict[str, float]:
    """The same for every weight of a model that is whole, by its name in the checkpoint."""
    return {
        name: _changed(layer) / (layer.out_features * layer.in_features)
        for name, layer in quantized_layers(model)
    }


def _changed(layer: QuantizedWeight) -> int:
    return int((layer.integers() != layer.start_integers()).sum())


def history_of(log_history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """What the Trainer's record says of logged steps, in their order.

    Returns:
        {"step", "loss", "learning_rate", "changed", "skipped"} of each, and "rate_NAME" of every
        rate, see `current_rates`.
    """
    defaults = {"learning_rate": 0.0, "skipped": 0}
    names = ("step", "loss", "learning_rate", "changed", "skipped")
    return [
        {name: row[name] for name in (*names, *filter(_is_rate, row))}
        for row in ({**defaults, **logged} for logged in log_history)
        if row.keys() >= set(names)
    ]


def _is_rate(name: str) -> bool:
    return name.startswith(_RATE)


def current_rates(optimizer: Any, peaks: Mapping[str, float]) -> dict[str, float]:
    """The rates of a step as "rate_NAME", in the units of the settings.

    Args:
        optimizer: whose groups have rates with factors of their own (`lrqat.training.rates`), on
            one schedule.
        peaks: name -> peak rate, of those that are in use.
    """
    groups = ((group["lr"], group["initial_lr"]) for group in optimizer.param_groups)
    share = next((rate / peak for rate, peak in groups if peak), 0.0)
    return {_RATE + name: share * peak for name, peak in peaks.items()}


class ProgressLine(TrainerCallback):
    """One line on standard error: loss, tokens per second, time left, share of integers changed.

    Args:
        model: what is trained.
        tokens_per_step: of one process.
        guard: its count of skipped steps is shown once it is not zero.
        rates: peak rates by name, which are kept with the steps.
        record: gets what is kept.

    Attributes:
        history: see `history_of`; of a run that was resumed, with the steps before.
    """

    def __init__(
        self,
        model: Any,
        tokens_per_step: int,
        guard: StepGuard | None = None,
        rates: Mapping[str, float] | None = None,
        record: Record = record_nothing,
    ) -> None:
        self._guard = guard or StepGuard()
        self._rates, self._record = rates or {}, record
        self._model = model
        self._tokens_per_step = tokens_per_step
        self._bar: Any = None
        self._start = 0.0
        self._first_step = 0
        self.history: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the line."""
        self._first_step, self._start = state.global_step, time.monotonic()
        self.history = history_of(state.log_history)
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="training",
            unit="step",
            disable=not state.is_world_process_zero,
            dynamic_ncols=True,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance by one step."""
        self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Show and keep what the Trainer logged."""
        if not logs or "loss" not in logs:
            return
        changed, skipped = share_changed(self._model), self._guard.skipped
        steps = state.global_step - self._first_step
        rate = steps * self._tokens_per_step * args.world_size / (time.monotonic() - self._start)
        self._bar.set_postfix_str(
            f"loss {logs['loss']:.4f}, {rate:,.0f} tokens/s, {changed:.2%} of integers changed"
            + (f", {skipped} steps skipped" if skipped else "")
        )
        # Into the Trainer's own record, which saved states hold.
        state.log_history[-1] |= {"changed": changed, "skipped": skipped}
        state.log_history[-1] |= current_rates(optimizer, self._rates)
        self.history += history_of(state.log_history[-1:])
        norm = {"grad_norm": logs.get("grad_norm")}
        values = {n: v for n, v in self.history[-1].items() if n not in ("step", "learning_rate")}
        self._record("train", values | norm, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the line."""
        self.close()

    def close(self) -> None:
        """Close the line, whether or not it was opened."""
        if self._bar is not None:
            self._bar.close()
