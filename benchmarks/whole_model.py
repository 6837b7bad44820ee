"""What a whole model needs: loading it weight by weight, and training steps, measured.

Peaks are those of the process (`benchmarks.memory_probe.process_peak`: with Python, the libraries,
and the mapped pages of the files while they are read) or, on a GPU, of PyTorch's allocator. Run one
measurement per process: memory that was freed before hides in the base of the next.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.memory_probe import Peak, cuda_peak, process_peak
from lrqat.errors import ModelError
from lrqat.models import hub
from lrqat.training.config import TrainConfig
from lrqat.training.data.blocks import TokenBlocks
from lrqat.training.loading import load_prepared
from lrqat.training.objectives.losses import Objective
from lrqat.training.optimizers import RATE_OF, make_optimizer
from lrqat.training.plan import plan_training
from lrqat.training.settings import ScheduleSettings
from lrqat.training.trainer import trained_parameters
from lrqat.training.training_model import TrainingModel


@dataclass(frozen=True)
class Part:
    """One part of the run.

    Attributes:
        peak: memory before and at most during it.
        seconds: by the clock.
    """

    peak: Peak
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """All figures for machines."""
        return {**vars(self.peak), "seconds": self.seconds}


def measure_model(
    config: TrainConfig, *, steps: int = 2, say: Callable[[str], None] = lambda message: None
) -> dict[str, Part]:
    """Load a model on its grid and take training steps on random tokens.

    The optimiser's moments appear in the first step, so the peak of a run is that of the second.

    Args:
        config: the run, with `streamed`: model, grid, phi, batch, length, rank, optimiser,
            checkpointing ...; its text and its teacher are not used.
        steps: how many.
        say: told each part once it is done.

    Returns:
        "load" and "steps".

    Raises:
        UserError: settings that do not fit the model, or weights that cannot be read one by one.
    """
    config = config.resolved()
    plan = plan_training(config)
    blocks = _random_blocks(config.model, config)
    measure = cuda_peak if plan.device == "cuda" else process_peak
    made: list[Any] = []

    def load() -> None:
        made.append(load_prepared(config, plan, blocks))

    def train() -> None:
        _train(made[0], config, _batch(blocks, plan.device), steps)

    parts: dict[str, Part] = {}
    for name, call in (("load", load), ("steps", train)):
        start = time.perf_counter()
        peak = measure(call)
        parts[name] = Part(peak, time.perf_counter() - start)
        say(f"{name}: {peak.peak / 2**30:.2f} GiB ({peak.how}) in {parts[name].seconds:.0f} s")
    return parts


def _random_blocks(model: str, schedule: ScheduleSettings) -> TokenBlocks:
    """One batch of random tokens."""
    vocabulary = hub.load_config(model).get_text_config().vocab_size
    count = schedule.batch_size * schedule.sequence_length
    tokens = np.random.default_rng(0).integers(0, vocabulary, count, np.int32)
    return TokenBlocks(tokens, schedule.sequence_length)


def _batch(blocks: TokenBlocks, device: str) -> Tensor:
    return torch.from_numpy(blocks.tokens.astype(np.int64)).to(device)


def _train(model: Any, schedule: ScheduleSettings, ids: Tensor, steps: int) -> None:
    training = TrainingModel(
        model.train(), Objective(), gradient_checkpointing=schedule.gradient_checkpointing
    )
    optimizer = make_optimizer(
        schedule.optimizer,
        trained_parameters(model).items(),
        dict.fromkeys(RATE_OF.values(), 1e-7),  # what is learned does not matter
        betas=(0.9, 0.95),
        weight_decay=0.0,
    )
    for _ in range(steps):
        loss = training(ids)["loss"]
        loss.backward()
        if not torch.isfinite(loss):
            raise ModelError(f"the loss is {loss.item()}; give a model with intact weights")
        optimizer.step()
        optimizer.zero_grad()
