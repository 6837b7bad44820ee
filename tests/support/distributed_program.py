"""Two steps on a tiny model, in one process or more: what torchrun starts for test_distributed.py.

    python tests/support/distributed_program.py OUTPUT CASE ...

A case is a form of the frozen weights, with ",fsdp" where parameters are sharded, and with ",bad"
where the second loss of the last rank is NaN. Each has a folder of its name in OUTPUT. Rank 0
writes `gradients.safetensors` (of the first step), `whole.safetensors` (the loss and the integers
at the end) and `about.json`; states go to `first` and, resumed from step 1, to `again`. One start
is for all cases: it takes longer than they do.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file
from torch import nn
from transformers import PrinterCallback, TrainerCallback

from lrqat.models.preparation import Settings, prepare, quantized_layers
from lrqat.models.small_llama import make_untrained_model
from lrqat.models.surgery import plan_surgery
from lrqat.training import processes
from lrqat.training.callbacks import ProgressLine
from lrqat.training.data.blocks import TokenBlocks
from lrqat.training.fitting import training_arguments
from lrqat.training.objectives.losses import Objective
from lrqat.training.settings import ScheduleSettings
from lrqat.training.states.sharding import full
from lrqat.training.trainer import LRQATTrainer, trained_parameters
from lrqat.training.training_model import TrainingModel

BATCH = 4  # of all ranks together


def make_model(phi):
    model = make_untrained_model(
        96, hidden=64, intermediate=128, layers=2, heads=2, kv_heads=1, seed=0
    )
    prepare(model, plan_surgery(model, "q4_0"), Settings(rank=4, phi=phi))
    torch.manual_seed(1)
    for _, layer in quantized_layers(model):
        nn.init.normal_(layer.lora_a, std=0.1)  # at zero, B would get no gradient
    return model


class Bad(Objective):
    """NaN from the last rank at its second call."""

    calls = 0

    def __call__(self, model, input_ids):
        self.calls += 1
        last = not dist.is_initialized() or dist.get_rank() == dist.get_world_size() - 1
        loss = super().__call__(model, input_ids)
        return loss * float("nan") if last and self.calls == 2 else loss


class Keep(TrainerCallback):
    def __init__(self):
        self.gradients = None
        self.sharded = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.gradients is None:
            self.sharded = [name for name, p in model.named_parameters() if full(p) is not p]
            named = trained_parameters(model)
            self.gradients = {
                name.rpartition("model.model.")[2]: full(p.grad).clone()
                for name, p in named.items()
            }


class ShardedOnCPU(LRQATTrainer):
    """Accelerate turns FSDP on for accelerators alone; everything after that also runs on CPUs."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True
        )
        self.is_fsdp_enabled = True


def train(output, phi, kind, objective, resume=None):
    """The trainer, its callback and the history of a run of two steps."""
    arguments = training_arguments(
        ScheduleSettings(steps=2, learning_rate=1e-2),
        output,
        save_every=1,
        use_cpu=True,
    )
    arguments.per_device_train_batch_size = BATCH // arguments.world_size
    tokens = np.random.default_rng(0).integers(0, 96, 32 * 16, dtype=np.int32)
    model, keep = TrainingModel(make_model(phi), objective), Keep()
    rates = {"low_rank": 1e-2, "scale": 1e-4}
    progress = ProgressLine(model, 64)
    trainer = kind(
        model,
        args=arguments,
        train_dataset=TokenBlocks(tokens, 16),
        rates=rates,
        callbacks=[keep, progress],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, keep, progress.history


def run(output, phi, *more):
    """One case into the folder `output`."""
    kind = ShardedOnCPU if "fsdp" in more else LRQATTrainer
    objective = Bad() if "bad" in more else Objective()
    trainer, keep, history = train(output / "first", phi, kind, objective)
    trained = trainer.trained_model()
    if trainer.is_world_process_zero():
        save_file(keep.gradients, output / "gradients.safetensors")
        with torch.no_grad():  # on one rank alone: nothing is left to gather
            whole = {"loss": Objective()(trained, torch.arange(32).reshape(2, 16))}
        whole |= {name: layer.integers() for name, layer in quantized_layers(trained)}
        assert not any("FSDP" in type(module).__name__ for module in trained.modules())
        assert all(full(tensor) is tensor for tensor in trained.state_dict().values())
        save_file(whole, output / "whole.safetensors")
        about = {"skipped": trainer.guard.skipped, "history": history, "sharded": keep.sharded}
        (output / "about.json").write_text(json.dumps(about))
    if "bad" not in more:
        train(output / "again", phi, kind, Objective(), str(output / "first" / "checkpoint-1"))


if __name__ == "__main__":
    for case in sys.argv[2:]:
        run(Path(sys.argv[1]) / case, *case.split(","))
    processes.leave()
