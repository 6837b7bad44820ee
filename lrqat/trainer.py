"""Hugging Face's Trainer, taught the three things that LR-QAT does differently.

A, B and the scales get rates of their own; the loss may be distillation; and a saved state holds
the trained tensors alone (`adapters.safetensors`), since the frozen ones come from the base model.
Accumulation, mixed precision, schedules, distribution and resumption are the Trainer's.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from lrqat.config import TrainConfig
from lrqat.errors import CheckpointError, NonFiniteLossError
from lrqat.losses import Objective

ADAPTERS = "adapters.safetensors"


def training_arguments(
    config: TrainConfig, state_folder: Path, *, use_cpu: bool
) -> TrainingArguments:
    """The Trainer's arguments for `config`; states go to `state_folder`."""
    return TrainingArguments(
        output_dir=str(state_folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(0.1 * config.steps),
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=use_cpu,
        save_steps=config.save_every or max(1, config.steps // 10),
        save_total_limit=2,
        logging_steps=max(1, config.steps // 100),
        # A NaN must stop the run (see compute_loss), not be left out of the average.
        logging_nan_inf_filter=False,
        report_to=_reporters(),
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=not use_cpu,
    )


class LRQATTrainer(Trainer):
    """Trainer of a prepared model.

    Args:
        model: from `lrqat.surgery.prepare`.
        *args: as for `transformers.Trainer`.
        objective: the loss.
        scale_learning_rate: peak rate of the scales.
        **kwargs: as for `transformers.Trainer`.
    """

    def __init__(
        self,
        model: nn.Module,
        *args: Any,
        objective: Objective,
        scale_learning_rate: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, *args, **kwargs)
        self._prepared = model  # self.model may become a distributed wrapper
        self._objective = objective
        self._scale_learning_rate = scale_learning_rate
        # All blocks have the same number of tokens: the mean over micro-batches is the mean over
        # tokens, and the Trainer divides by their number only if this is off.
        self.model_accepts_loss_kwargs = False

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with one group for A and B and one for the scales."""
        if self.optimizer is None:
            trained = trained_parameters(self._prepared)
            scales = [p for name, p in trained.items() if name.endswith(".scale")]
            low_rank = [p for name, p in trained.items() if not name.endswith(".scale")]
            self.optimizer = torch.optim.AdamW(
                [
                    {"params": low_rank, "lr": self.args.learning_rate},
                    {"params": scales, "lr": self._scale_learning_rate},
                ],
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                weight_decay=self.args.weight_decay,
            )
        return self.optimizer

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The objective on one micro-batch. Raises NonFiniteLossError on NaN or infinity."""
        loss = self._objective(model, inputs["input_ids"])
        if not torch.isfinite(loss):
            raise NonFiniteLossError(f"the loss became {loss.item()} at step {self._step}")
        return loss

    def refuse_non_finite_gradients(self) -> None:
        """Raise NonFiniteLossError before an optimiser step that would poison the parameters."""
        for name, parameter in trained_parameters(self._prepared).items():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise NonFiniteLossError(
                    f"the gradient of {name} became non-finite at step {self._step}"
                )

    @property
    def _step(self) -> int:
        return self.state.global_step + 1

    def save_state_now(self) -> Path:
        """Save a resumable state of the parameters as they stand, and return its folder."""
        self._save_checkpoint(self._prepared, trial=None)
        return Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            n: p.detach().contiguous() for n, p in trained_parameters(self._prepared).items()
        }
        save_file(tensors, folder / ADAPTERS, metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_adapters(self._prepared, Path(resume_from_checkpoint))


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
            parameter.copy_(saved[name])


def _reporters() -> list[str]:
    """TensorBoard when it is installed; nothing that would phone out."""
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        return []
    return ["tensorboard"]
