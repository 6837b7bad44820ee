"""Skipped steps: by the decision alone, and in the Trainer, against runs that never saw them."""

import copy
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lrqat.atomic_files import write_json
from lrqat.errors import CheckpointError, NonFiniteLossError, UserError
from lrqat.models.preparation import Settings, prepare, quantized_layers
from lrqat.models.small_llama import make_untrained_model
from lrqat.models.surgery import plan_surgery
from lrqat.training.callbacks import ProgressLine
from lrqat.training.data.blocks import TokenBlocks
from lrqat.training.fitting import training_arguments
from lrqat.training.guard import MOST_IN_A_ROW, StepGuard
from lrqat.training.objectives.losses import Objective
from lrqat.training.optimizers import make_optimizer, refuse_unavailable
from lrqat.training.settings import ScheduleSettings
from lrqat.training.states.folder import ADAPTERS, OPTIMIZER, TRAINING, read_training
from lrqat.training.trainer import (
    LRQATTrainer,
    _refuse_fsdp_left_off,
    trained_parameters,
)
from lrqat.training.training_model import TrainingModel

RATES = {"low_rank": 1e-2, "scale": 1e-4}
BAD = (float("nan"), float("inf"), -float("inf"))


@pytest.fixture(scope="module")
def prepared():
    model = make_untrained_model(
        96, hidden=64, intermediate=64, layers=2, heads=2, kv_heads=1, seed=0
    )
    return prepare(model, plan_surgery(model, "q4_0"), Settings(rank=4))


class Poisoned(Objective):
    """The usual loss; at the calls in `at` (from 0), `spoil` is applied to it."""

    def __init__(self, at=(), spoil=lambda loss: loss * float("nan")):
        super().__init__()
        self.calls, self.at, self.spoil = -1, at, spoil

    def __call__(self, model, input_ids):
        self.calls += 1
        loss = super().__call__(model, input_ids)
        return self.spoil(loss) if self.calls in self.at else loss


def explode(loss):
    """A finite loss whose gradient is not."""
    loss.register_hook(lambda gradient: gradient * float("inf"))
    return loss


def make_trainer(
    prepared, folder, objective, *, kind=LRQATTrainer, optimizer="adamw", save_every=1, **changes
):
    schedule = {"steps": 6, "batch_size": 2, "learning_rate": RATES["low_rank"]} | changes
    model = TrainingModel(copy.deepcopy(prepared), objective)
    tokens = torch.randint(0, 96, (16 * 64,), generator=torch.Generator().manual_seed(0))
    guard = StepGuard()
    return kind(
        model,
        args=training_arguments(
            ScheduleSettings(**schedule), folder, save_every=save_every, use_cpu=True
        ),
        train_dataset=TokenBlocks(tokens.int().numpy(), 16),
        rates=RATES,
        optimizer=optimizer,
        guard=guard,
        callbacks=[ProgressLine(model, 32, guard)],
    )


@given(st.lists(st.sampled_from([1.0, 0.0, *BAD]), max_size=12), st.booleans())
def test_a_step_is_taken_if_and_only_if_all_of_it_is_finite(losses, norm_is_bad):
    guard = StepGuard()
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    logged = [float(guard.watch(torch.tensor(loss))) for loss in losses]
    good = not norm_is_bad and not any(loss in BAD or loss != loss for loss in losses)
    assert guard.admit([parameter], torch.tensor(BAD[0] if norm_is_bad else 1.0)) == good
    assert (parameter.grad is not None) == good == (guard.skipped == 0)
    finite = [loss for loss in losses if abs(loss) < float("inf")]
    assert set(finite) >= {loss for loss in logged if loss == loss}
    parameter.grad = torch.ones(2)
    assert guard.admit([parameter], 1.0), "a bad step must not spoil the one after it"


def test_only_bad_steps_in_a_row_are_divergence():
    guard = StepGuard()
    for norm in [float("nan")] * (MOST_IN_A_ROW - 1) + [1.0] + [float("inf")] * MOST_IN_A_ROW:
        assert not guard.diverged
        guard.admit([], norm)
    assert guard.diverged
    assert guard.skipped == 2 * MOST_IN_A_ROW - 1
    again = StepGuard()
    again.load_json(guard.to_json())
    assert (again.skipped, again.diverged) == (guard.skipped, True)


@pytest.mark.parametrize("spoil", [lambda loss: loss * float("nan"), explode])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_skipped_step_leaves_parameters_and_moments(
    prepared, tmp_path, spoil, accumulation, capsys
):
    """The third step is bad in its first micro-batch only; states are saved after every step."""
    objective = Poisoned({2 * accumulation}, spoil)
    trainer = make_trainer(
        prepared, tmp_path, objective, gradient_accumulation=accumulation, steps=3
    )
    trainer.train()
    before, after = ((tmp_path / f"checkpoint-{n}") for n in (2, 3))
    for name in (ADAPTERS, OPTIMIZER):
        assert (before / name).read_bytes() == (after / name).read_bytes()
    assert read_training(after)["guard"] == {"skipped": 1, "in_a_row": 1}
    assert "1 steps skipped" in capsys.readouterr().err
    assert all(torch.isfinite(torch.tensor(e["loss"])) for e in trainer.state.log_history[:3])


def test_training_goes_on_after_a_skipped_step(prepared, tmp_path):
    trainer = make_trainer(prepared, tmp_path, Poisoned({1, 2, 4}))
    trainer.train()
    assert (trainer.guard.skipped, trainer.guard.in_a_row) == (3, 0)
    assert trainer.state.global_step == 6
    steps = {float(entry["step"]) for entry in trainer.optimizer.state.values()}
    assert steps == {3.0}, "the optimiser counts the steps that were taken"


def test_five_bad_steps_stop_training_with_the_last_good_state(prepared, tmp_path):
    trainer = make_trainer(prepared, tmp_path, Poisoned(range(2, 100)), steps=20, save_every=1000)
    expected = r"5 steps in a row, the last of them step 7; .*checkpoint-7\. .*--learning-rate"
    with pytest.raises(NonFiniteLossError, match=expected):
        trainer.train()
    reference = make_trainer(prepared, tmp_path / "two", Poisoned(), steps=20)
    stop_at(reference, 2)
    first, second = tmp_path / "checkpoint-7", tmp_path / "two" / "checkpoint-2"
    for name in (ADAPTERS, OPTIMIZER):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def stop_at(trainer, step):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= step

    trainer.add_callback(Stop())
    trainer.train()


def test_gradient_checkpointing_gives_the_same_gradients(prepared):
    ids = torch.arange(32).reshape(2, 16)
    results, forwards = [], []
    for on in (False, True):
        inner = copy.deepcopy(prepared)
        for _, layer in quantized_layers(inner):
            nn.init.constant_(layer.lora_a, 0.01)
        objective, calls = Objective(), []
        objective(inner, ids)  # looks for the head first, by running the model
        next(quantized_layers(inner))[1].register_forward_hook(lambda *_, c=calls: c.append(1))
        model = TrainingModel(inner, objective, gradient_checkpointing=on).train()
        model(ids)["loss"].backward()
        results.append({name: p.grad for name, p in trained_parameters(model).items()})
        forwards.append(len(calls))
    assert forwards == [1, 2], "checkpointing computes a block again"
    assert all(g.abs().max() > 0 for g in results[0].values())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_every_trained_parameter_gets_its_rate(prepared):
    named = trained_parameters(prepared)
    optimizer = make_optimizer("adamw", named.items(), RATES, betas=(0.9, 0.95), weight_decay=0.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in named.items():
        assert rates.pop(id(parameter)) == RATES["scale" if name.endswith("scale") else "low_rank"]
    assert not rates
    with pytest.raises(ValueError, match=r"layer\.bias"):
        make_optimizer(
            "adamw",
            [("layer.bias", nn.Parameter(torch.ones(1)))],
            RATES,
            betas=(0.9, 0.95),
            weight_decay=0.0,
        )


def test_a_run_resumed_on_another_number_of_processes_is_refused(prepared, tmp_path):
    make_trainer(prepared, tmp_path, Objective(), steps=2).train()
    state = tmp_path / "checkpoint-1"
    write_json(state / TRAINING, read_training(state) | {"processes": 2})
    with pytest.raises(CheckpointError, match="on 2 processes, and this is one on 1"):
        make_trainer(prepared, tmp_path, Objective(), steps=2).train(str(state))


@pytest.mark.parametrize(("version", "optimizer"), [(1, "adamw"), (2, "adamw8bit")])
def test_fsdp_in_a_form_that_cannot_work_is_refused(prepared, tmp_path, version, optimizer):
    class Sharded(LRQATTrainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            plugin = types.SimpleNamespace(fsdp_version=version)
            self.accelerator.state.fsdp_plugin = plugin
            self.is_fsdp_enabled = True

    with pytest.raises(UserError, match=r"version 2|--optimizer adamw,"):
        make_trainer(prepared, tmp_path, Objective(), kind=Sharded, optimizer=optimizer)


def test_fsdp_that_would_be_passed_over_is_refused(monkeypatch):
    _refuse_fsdp_left_off(2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    _refuse_fsdp_left_off(1)
    with pytest.raises(UserError, match="FSDP needs a GPU"):
        _refuse_fsdp_left_off(2)


def test_an_optimizer_that_is_not_there_is_named(monkeypatch):
    with pytest.raises(UserError, match="'sgd' is unknown; choose adamw, adamw8bit"):
        refuse_unavailable("sgd")
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(
        UserError, match=r"pip install 'lrqat\[optim8bit\]', or use --optimizer adamw"
    ):
        refuse_unavailable("adamw8bit")


def test_the_8_bit_optimizer_keeps_8_bit_moments_skips_and_resumes(prepared, tmp_path):
    pytest.importorskip("bitsandbytes")
    from safetensors.torch import load_file

    large = make_untrained_model(
        96, hidden=512, intermediate=512, layers=1, heads=2, kv_heads=2, seed=0
    )
    prepare(large, plan_surgery(large, "q4_0"), Settings(rank=8))
    whole = make_trainer(large, tmp_path, Poisoned({1}), optimizer="adamw8bit", steps=4)
    whole.train()
    moments = load_file(tmp_path / "checkpoint-4" / OPTIMIZER)
    kinds = {t.dtype for n, t in moments.items() if "lora_a.state" in n}
    assert kinds == {torch.uint8}
    again = make_trainer(large, tmp_path / "b", Poisoned(), optimizer="adamw8bit", steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for name in (ADAPTERS, OPTIMIZER):
        files = [f / "checkpoint-4" / name for f in (tmp_path, tmp_path / "b")]
        tensors = [load_file(file) for file in files]
        assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
