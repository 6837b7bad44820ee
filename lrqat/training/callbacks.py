"""What a training run shows and watches while it goes."""

import time
from typing import Any

import torch
from transformers import TrainerCallback

from lrqat.models.preparation import quantized_layers
from lrqat.progress import tqdm
from lrqat.training.guard import StepGuard
from lrqat.training.states.sharding import whole_parts


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
                changed += int((layer.integers() != layer.start_integers()).sum())
                total += layer.out_features * layer.in_features
    return changed / max(1, total)


def history_of(log_history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """What the Trainer's record says of logged steps, in their order.

    Returns:
        {"step", "loss", "learning_rate", "changed", "skipped"} of each.
    """
    defaults = {"learning_rate": 0.0, "skipped": 0}
    names = ("step", "loss", "learning_rate", "changed", "skipped")
    return [
        {name: row[name] for name in names}
        for row in ({**defaults, **logged} for logged in log_history)
        if row.keys() >= set(names)
    ]


class ProgressLine(TrainerCallback):
    """One line on standard error: loss, tokens per second, time left, share of integers changed.

    Args:
        model: what is trained.
        tokens_per_step: of one process.
        guard: its count of skipped steps is shown once it is not zero.

    Attributes:
        history: see `history_of`; of a run that was resumed, with the steps before.
    """

    def __init__(self, model: Any, tokens_per_step: int, guard: StepGuard | None = None) -> None:
        self._guard = guard or StepGuard()
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
        self.history += history_of(state.log_history[-1:])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the line."""
        self.close()

    def close(self) -> None:
        """Close the line, whether or not it was opened."""
        if self._bar is not None:
            self._bar.close()
