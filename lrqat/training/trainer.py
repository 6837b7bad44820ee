"""Hugging Face's Trainer, taught the things that LR-QAT does differently.

What is trained is a `lrqat.training.training_model.TrainingModel`. A, B and the scales get rates of
their own; a step whose loss or gradient is not finite is skipped; and saved states hold the trained
tensors alone, in safetensors and JSON (`lrqat.training.states.folder`). Accumulation, schedules and
distribution are the Trainer's and Accelerate's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import parse_flag_from_env
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer

from lrqat.atomic_files import write_json
from lrqat.errors import CheckpointError, NonFiniteLossError, UserError
from lrqat.training.guard import MOST_IN_A_ROW, StepGuard
from lrqat.training.interruption import Interruption
from lrqat.training.optimizers import make_optimizer
from lrqat.training.rates import rate_factors
from lrqat.training.states import folder as states
from lrqat.training.states.folder import ADAPTERS
from lrqat.training.states.sharding import fill, full, shard_like, skeleton
from lrqat.training.states.snapshot import (
    optimizer_snapshot,
    random_snapshot,
    restore_optimizer,
    restore_random,
)
from lrqat.training.training_model import TrainingModel


class LRQATTrainer(Trainer):
    """Trainer of a `TrainingModel`.

    Args:
        model: the module to train.
        *args: as for `transformers.Trainer`.
        rates: peak rates by name, see `lrqat.training.optimizers.RATE_OF`.
        optimizer: a name in `lrqat.training.optimizers.OPTIMIZERS`.
        guard: counts skipped steps; None makes one.
        interruption: asked after every step whether to save a state and end; None: never.
        **kwargs: as for `transformers.Trainer`.

    Raises:
        UserError: the optimiser is not available, or FSDP was asked for in a form that cannot work.
    """

    def __init__(
        self,
        model: TrainingModel,
        *args: Any,
        rates: Mapping[str, float],
        optimizer: str = "adamw",
        guard: StepGuard | None = None,
        interruption: Interruption | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, *args, **kwargs)
        # self.model may become a distributed wrapper; names of saved tensors are the inner model's.
        self._prepared = model.model
        self._factors = rate_factors(self._prepared)
        self._rates, self._optimizer_name = rates, optimizer
        self.guard = guard or StepGuard()
        self._interruption = interruption
        self._skeleton: nn.Module | None = None
        if not self.is_fsdp_enabled:
            _refuse_fsdp_left_off(self.args.world_size)
        else:
            _refuse_fsdp(self.accelerator.state.fsdp_plugin.fsdp_version, optimizer)
            self._skeleton = skeleton(self._prepared)

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train, after removing what a killed process left unfinished among the states."""
        if self.is_world_process_zero():
            states.sweep(self._folder)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def trained_model(self) -> nn.Module:
        """The prepared model with what was learned, whole on this process.

        The one that was given, unless FSDP has sharded that; then every rank must call this.
        """
        if self._skeleton is None:
            return self._prepared
        return fill(self._skeleton, self._prepared)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimiser, with a group of parameters for every rate."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(
                self._optimizer_name,
                trained_parameters(self._prepared).items(),
                self._rates,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                weight_decay=self.args.weight_decay,
                factors=self._factors,
            )
        return self.optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch, forward and backward."""
        return self.guard.watch(super().training_step(*args, **kwargs))

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        # The Trainer asks for the norm once per step, between clipping and the optimiser.
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.guard.admit(trained_parameters(self._prepared).values(), norm)
        return full(norm) if isinstance(norm, Tensor) else norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self.guard.diverged:
            rates = ", ".join(f"{name} {rate:g}" for name, rate in self._rates.items())
            raise NonFiniteLossError(
                f"the loss or the gradients were not finite in {MOST_IN_A_ROW} steps in a row, the "
                f"last of them step {self.state.global_step}; the last good state is kept in "
                f"{self.save_state_now()}. Start again with a lower --learning-rate or "
                f"--scale-learning-rate (peak rates now: {rates})"
            )
        if self._interruption:
            self._interruption.raise_if_asked(self.save_state_now)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log what is a number: the norm of a skipped step is none, and JSON has no NaN."""
        finite = {k: v for k, v in logs.items() if abs(v) < float("inf")}
        super().log(finite | {"skipped_steps": self.guard.skipped}, *args, **kwargs)

    @property
    def _folder(self) -> Path:
        return Path(str(self.args.output_dir))

    def save_state_now(self) -> Path:
        """Save a resumable state of everything as it stands, and return its folder.

        Every rank must call this; the first one writes.
        """
        self.store_flos()
        named = trained_parameters(self._prepared)
        adapters = {name: full(p.detach()).cpu().contiguous() for name, p in named.items()}
        assert self.lr_scheduler is not None  # made before the first step
        tensors, training = optimizer_snapshot(self.optimizer, named)
        training |= {
            "schedule": self.lr_scheduler.state_dict(),
            "guard": self.guard.to_json(),
            "processes": self.args.world_size,
        }
        generators = _of_all_ranks(random_snapshot())

        def write(folder: Path) -> None:
            for name, content in (
                (ADAPTERS, adapters),
                (states.OPTIMIZER, tensors),
                (states.RANDOM, generators),
            ):
                save_file(content, folder / name, metadata={"format": "pt"})
            write_json(folder / states.TRAINING, training)
            self.state.save_to_json(str(folder / states.TRAINER_STATE))

        if self.is_world_process_zero():
            states.write_state(self._folder, self.state.global_step, write)
        self.accelerator.wait_for_everyone()
        return self._folder / f"checkpoint-{self.state.global_step}"

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.save_state_now()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        state = Path(resume_from_checkpoint)
        saved = states.read_training(state)["processes"]
        if saved != self.args.world_size:
            raise CheckpointError(
                f"{state} was saved by a run on {saved} processes, and this is one on "
                f"{self.args.world_size}, which would see other text; start as many as before"
            )
        load_adapters(self._prepared, state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        training = states.read_training(Path(checkpoint))
        restore_optimizer(
            self.optimizer,
            trained_parameters(self._prepared),
            load_file(Path(checkpoint) / states.OPTIMIZER),
            training,
        )
        assert self.lr_scheduler is not None  # made before this is called
        self.lr_scheduler.load_state_dict(training["schedule"])
        self.guard.load_json(training["guard"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Nothing: a state has no scaler, and a scaler.pt that lies there is a pickle."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        prefix = f"{self.args.process_index}."
        saved = load_file(Path(checkpoint) / states.RANDOM)
        restore_random(
            {n.removeprefix(prefix): t for n, t in saved.items() if n.startswith(prefix)}
        )


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """A, B and s of every quantised layer, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def load_adapters(model: nn.Module, folder: Path) -> None:
    """Put the trained tensors of a saved state into a prepared model.

    Raises:
        CheckpointError: the state is of another model, grid or rank.
    """
    saved, own = load_file(folder / ADAPTERS), trained_parameters(model)
    shapes = ({n: t.shape for n, t in saved.items()}, {n: p.shape for n, p in own.items()})
    if shapes[0] != shapes[1]:
        raise CheckpointError(
            f"{folder} was saved by a run with another model, grid or --rank; resume with the "
            "settings it was started with"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(shard_like(saved[name], parameter))


def _refuse_fsdp(version: int, optimizer: str) -> None:
    if version != 2:
        raise UserError(
            f"FSDP version {version} flattens parameters, so they have no rates of their own; use "
            "version 2 (accelerate launch --fsdp_version 2)"
        )
    if optimizer == "adamw8bit":
        raise UserError(
            "--optimizer adamw8bit cannot keep states of parameters that FSDP has sharded; use "
            "--optimizer adamw, whose states FSDP shards"
        )


def _refuse_fsdp_left_off(processes: int) -> None:
    # Accelerate turns FSDP on for accelerators alone, and passes over the wish elsewhere.
    if processes > 1 and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise UserError(
            "FSDP needs a GPU for every process, and this run is on the CPU; start it without FSDP "
            "(torchrun alone gives DDP), or with --device cuda"
        )


def _of_all_ranks(snapshot: dict[str, Tensor]) -> dict[str, Tensor]:
    """The snapshots of all ranks, "<rank>.<name>"; every rank must call this."""
    snapshots: list[Any] = [snapshot]
    if dist.is_available() and dist.is_initialized():
        snapshots = [None] * dist.get_world_size()
        dist.all_gather_object(snapshots, snapshot)
    return {f"{rank}.{name}": t for rank, s in enumerate(snapshots) for name, t in s.items()}
