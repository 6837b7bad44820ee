"""Training from end to end on a tiny model, its failures, and a run that is really killed."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import CheckpointError, DataError, NonFiniteLossError, OutputError, UserError
from lrqat.training.config import TrainConfig
from lrqat.training.objectives.losses import Objective
from lrqat.training.plan import plan_training
from lrqat.training.run import train
from lrqat.training.trainer import ADAPTERS

FAST = {"steps": 8, "batch_size": 2, "sequence_length": 32, "rank": 4, "context": 32}
FAST |= {"eval_windows": 4, "save_every": 2, "stages": "model", "teacher": "none"}


@pytest.fixture
def settings(tiny_model, text_file, tmp_path):
    return {
        "model": str(tiny_model),
        "data": str(text_file),
        "output": str(tmp_path / "run"),
        **FAST,
    }


@pytest.mark.parametrize("teacher", ["none", "self"])
@pytest.mark.parametrize("phi", ["fp32", "fixed"])
def test_training_lowers_the_loss_and_the_checkpoint_is_what_was_measured(settings, teacher, phi):
    settings |= {"steps": 40, "learning_rate": 3e-2, "rank": 16, "teacher": teacher, "phi": phi}
    report = train(TrainConfig(**settings))
    checkpoint = Checkpoint.open(report.output)
    assert report.changed > 0.001
    recorded = checkpoint.manifest["reference"]
    assert recorded["perplexity"] == report.after.perplexity
    assert recorded["rule"] == "llama-perplexity"
    assert checkpoint.manifest["training"]["tokens"] == 40 * 2 * 32
    if teacher == "none":  # a random model: any training on text helps
        assert report.after.perplexity < 0.97 * report.rounded.perplexity
        assert not report.made_worse
    assert (report.output / "training.png").read_bytes().startswith(b"\x89PNG")


def test_the_recorded_reference_is_reproduced_from_the_checkpoint(settings):
    from lrqat.evaluation.perplexity import Windows, perplexity
    from lrqat.evaluation.text import EvaluationText, encode, window_bos
    from lrqat.models import hub
    from lrqat.models.reference import load_reference, torch_logits
    from lrqat.training.data.documents import documents, split_held_out

    report = train(TrainConfig(**settings))
    checkpoint = Checkpoint.open(report.output)
    tokenizer = hub.load_tokenizer(report.output)
    text = EvaluationText.of("x", split_held_out(documents(settings["data"], tokenizer))[0])
    windows = Windows.cut(encode(tokenizer, text.text), 32, window_bos(tokenizer), 4)
    again = perplexity(torch_logits(load_reference(checkpoint)), windows)
    assert text.sha256 == checkpoint.manifest["reference"]["data_sha256"]
    assert again.perplexity == pytest.approx(report.after.perplexity, rel=1e-6)


def test_bfloat16_compute_trains_scales_too(settings):
    report = train(TrainConfig(**settings, dtype="bfloat16", scale_learning_rate=1e-4))
    state = load_file(report.output / "checkpoints" / "checkpoint-8" / ADAPTERS)
    assert {tensor.dtype.name for tensor in state.values()} == {"float32"}
    assert report.after.tokens > 0


def test_the_same_seed_gives_the_same_bytes(settings, tmp_path):
    outputs = [train(TrainConfig(**settings | {"output": str(tmp_path / n)})).output for n in "ab"]
    first, second = ((path / "model.safetensors").read_bytes() for path in outputs)
    assert first == second


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_result(settings, tmp_path):
    """SIGKILL in the middle, `--resume auto`, and the bytes of an uninterrupted run."""
    settings |= {"steps": 60, "save_every": 5}
    whole = train(TrainConfig(**settings | {"output": str(tmp_path / "whole")})).output
    arguments = [sys.executable, "tools/train.py"]
    for name, value in settings.items():
        arguments += ["--" + name.replace("_", "-"), str(value)]
    states = tmp_path / "run" / "checkpoints"
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (states / "checkpoint-10" / "trainer_state.json").is_file():
        assert time.monotonic() < deadline
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "lrqat.json").exists(), "nothing half-written"
    with pytest.raises(OutputError, match="--resume auto"):
        train(TrainConfig(**settings))
    resumed = train(TrainConfig(**settings), resume="auto").output
    tensors = [load_file(path / "model.safetensors") for path in (whole, resumed)]
    assert all(np.array_equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def test_resuming_with_other_settings_is_refused(settings):
    train(TrainConfig(**settings))
    with pytest.raises(UserError, match=r"learning_rate 0\.0007, this one has 0\.5"):
        train(TrainConfig(**settings | {"learning_rate": 0.5}), resume="auto")
    with pytest.raises(UserError, match="not a complete saved state"):
        train(TrainConfig(**settings), resume=settings["output"])


def test_an_existing_checkpoint_is_untouched_without_overwrite(settings):
    report = train(TrainConfig(**settings))
    before = {p.name: p.read_bytes() for p in report.output.iterdir() if p.is_file()}
    with pytest.raises(OutputError, match="--overwrite"):
        train(TrainConfig(**settings))
    assert before == {p.name: p.read_bytes() for p in report.output.iterdir() if p.is_file()}
    train(TrainConfig(**settings | {"seed": 1}), overwrite=True)
    assert Checkpoint.open(report.output).manifest["training"]["seed"] == 1


def losses_with(monkeypatch, change):
    """Let the loss of call n be `change(n, loss)`; the estimate's, on meta, is not one of them."""
    calls, computed = iter(range(1000)), Objective.__call__

    def changed(self, *args, **kwargs):
        loss = computed(self, *args, **kwargs)
        return loss if loss.is_meta else change(next(calls), loss)

    monkeypatch.setattr("lrqat.training.objectives.losses.Objective.__call__", changed)


def test_five_non_finite_losses_in_a_row_stop_with_a_good_state(settings, monkeypatch):
    losses_with(monkeypatch, lambda n, loss: loss * float("nan") if n >= 2 else loss)
    with pytest.raises(
        NonFiniteLossError, match=r"5 steps in a row.*checkpoint-7.*--learning-rate"
    ):
        train(TrainConfig(**settings))
    output = settings["output"]
    assert not os.path.exists(f"{output}/lrqat.json")
    states = [load_file(f"{output}/checkpoints/checkpoint-{n}/{ADAPTERS}") for n in (6, 7)]
    assert all(np.isfinite(tensor).all() for tensor in states[1].values())
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])


def test_a_step_with_a_non_finite_gradient_is_skipped_and_counted(settings, monkeypatch):
    def exploding(n, loss):
        if n == 3:
            loss.register_hook(lambda grad: grad * float("inf"))
        return loss

    losses_with(monkeypatch, exploding)
    report = train(TrainConfig(**settings))
    assert report.skipped_steps == 1
    state = load_file(f"{settings['output']}/checkpoints/checkpoint-8/{ADAPTERS}")
    assert all(np.isfinite(tensor).all() for tensor in state.values())


def test_a_full_disk_leaves_nothing_half_written(settings):
    """A real limit on file size, in a process of its own, hit while the checkpoint is written."""
    code = """
import json, resource, signal, sys
from lrqat.models import fuse, hub, preparation, surgery
import torch
settings = json.loads(sys.argv[1])
model = hub.load_model(settings["model"], dtype=torch.float32)
plan = surgery.plan_surgery(model, "q4_0")
preparation.prepare(model, plan, preparation.Settings(rank=4))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
base = {"name": "tiny", "revision": None, "dtype": "float32"}
try:
    fuse.fuse(model, hub.load_tokenizer(settings["model"]), settings["output"], plan=plan,
              base_model=base)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(settings)], capture_output=True, text=True
    )
    assert "OutputError cannot write" in done.stdout, done.stderr
    assert not os.path.exists(settings["output"])
    assert sorted(os.listdir(os.path.dirname(settings["output"]))) == []


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"model": "/no/such/folder"}, UserError, "no model folder at /no/such/folder"),
        ({"data": "/no/such.txt"}, DataError, r"no file at /no/such\.txt"),
        ({"data": "/no/such.jsonl"}, DataError, r"no file at /no/such\.jsonl"),
        ({"grid": "q40"}, UserError, "did you mean q4_0"),
        ({"teacher": "/no/teacher"}, UserError, "no model folder at /no/teacher"),
        ({"sequence_length": 200_000}, DataError, "less than one sequence"),
        ({"context": 1_000_000}, DataError, "smaller --context"),
        ({"device": "nonsense"}, UserError, "--device 'nonsense'"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(settings, change, error, match):
    with pytest.raises(error, match=match):
        train(TrainConfig(**settings | change))
    assert not os.path.exists(settings["output"])


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"rank": 0}, {"phi": "x"}, {"learning_rate": -1}, {"dtype": "int8"}]
)
def test_settings_out_of_range_are_refused_at_once(settings, change):
    flag = "--" + next(iter(change)).replace("_", "-")
    with pytest.raises(UserError, match=flag):
        TrainConfig(**settings | change)


def test_models_that_are_not_causal_are_refused(settings, tmp_path):
    from transformers import BertConfig

    BertConfig(num_hidden_layers=1).save_pretrained(tmp_path / "t5")
    (tmp_path / "t5" / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    with pytest.raises(UserError, match="not a causal language model"):
        plan_training(TrainConfig(**settings | {"model": str(tmp_path / "t5")}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        plan_training(TrainConfig(**settings | {"model": str(tmp_path / "empty")}))


def test_a_fused_checkpoint_is_not_trained_again(settings, fused_checkpoint):
    with pytest.raises(UserError, match="already a fused checkpoint"):
        plan_training(TrainConfig(**settings | {"model": str(fused_checkpoint)}))


def test_a_damaged_weight_file_is_named(settings, tiny_model, tmp_path):
    import shutil

    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match="broken"):
        train(TrainConfig(**settings | {"model": str(broken)}))


def test_the_plan_counts_what_training_trains(settings):
    from lrqat.models import hub, preparation
    from lrqat.training.trainer import trained_parameters

    config = TrainConfig(**settings).resolved()
    plan = plan_training(config)
    model = hub.load_model(config.model, dtype=torch.float32)
    preparation.prepare(model, plan.surgery, config)
    assert plan.trainable == sum(p.numel() for p in trained_parameters(model).values())
    json.dumps(plan.to_json())


def test_cross_entropy_is_the_models_own(tiny_model):
    from lrqat.models import hub

    model = hub.load_model(str(tiny_model), dtype=torch.float32)
    ids = torch.randint(0, 500, (2, 33))
    expected = model(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(Objective()(model, ids), expected)


def test_an_unfinished_state_is_not_resumed_from(settings):
    report = train(TrainConfig(**settings))
    (report.output / "checkpoints" / "checkpoint-8" / "trainer_state.json").unlink()
    from lrqat.training.states.resume import find_state

    state = find_state(report.output / "checkpoints", "auto", TrainConfig(**settings))
    assert state is not None
    assert state.name == "checkpoint-6"


def test_a_state_of_another_rank_cannot_be_loaded(settings, tiny_model):
    from lrqat.models import hub, preparation, surgery
    from lrqat.training.trainer import load_adapters

    report = train(TrainConfig(**settings))
    model = hub.load_model(str(tiny_model), dtype=torch.float32)
    preparation.prepare(model, surgery.plan_surgery(model, "q4_0"), preparation.Settings(rank=8))
    with pytest.raises(CheckpointError, match="--rank"):
        load_adapters(model, report.output / "checkpoints" / "checkpoint-8")


def test_worse_is_judged_by_what_was_trained_for(settings):
    """Distillation may raise perplexity while it closes in on the teacher."""
    import dataclasses

    report = train(TrainConfig(**settings | {"teacher": "self", "steps": 20}))
    assert report.kl_rounded is not None
    closer = dataclasses.replace(report, kl_after=report.kl_rounded / 2)
    assert not closer.made_worse
    assert dataclasses.replace(report, kl_after=report.kl_rounded * 2).made_worse
    plain = dataclasses.replace(report, kl_rounded=None, kl_after=None, after=report.rounded)
    assert not plain.made_worse
