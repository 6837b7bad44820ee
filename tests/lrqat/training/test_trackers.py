"""The series that TensorBoard and Trackio get are those of the run."""

import pytest

from lrqat.errors import RuntimeUnavailableError, UserError
from lrqat.training import trackers
from lrqat.training.config import TrainConfig
from lrqat.training.run import train


@pytest.fixture
def config(tiny_model, text_file, tmp_path):
    def make(report_to):
        return TrainConfig(
            model=str(tiny_model), data=str(text_file), output=str(tmp_path / "run"), grid="q2_0",
            stages="blocks,model", steps=4, block_steps=2, block_tokens=512, rank=4, batch_size=1,
            sequence_length=64, context=64, eval_windows=2, importance_tokens=512,
            report_to=report_to,
        )  # fmt: skip

    return make


class Fake:
    def __init__(self, states, name):
        self.logged, self.finished, self.name = [], False, name

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


def of(logged, name):
    return [(step, values[name]) for step, values in logged if name in values]


def test_every_stage_is_in_one_run(config, monkeypatch):
    runs = []

    def begin(states, name):
        runs.append(Fake(states, name))
        return runs[-1]

    monkeypatch.setitem(trackers.TRACKERS, "fake", trackers._Tracker("json", "", begin))
    report = train(config("fake"))
    (run,) = runs
    assert run.finished
    assert run.name == "run"
    blocks = [(n, block.after) for n, block in enumerate(report.blocks, 1)]
    assert of(run.logged, "blocks/error_after") == blocks
    assert len(blocks) == 2
    for name in ("loss", "changed", "rate_low_rank", "rate_scale"):
        expected = [(row["step"], row[name]) for row in report.history]
        assert of(run.logged, f"train/{name}") == expected
        assert len(expected) == 4
    assert of(run.logged, "measured/kl") == [(0, report.kl_start), (4, report.kl_after)]
    assert set(report.weights) == {name for block in report.blocks for name in block.weights} | {
        "model.embed_tokens", "lm_head"}  # fmt: skip


def test_tensorboard_has_them_on_disk(config, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = train(config("tensorboard"))
    found = EventAccumulator(str(tmp_path / "run" / "checkpoints" / "tensorboard"))
    found.Reload()
    losses = [(e.step, pytest.approx(e.value)) for e in found.Scalars("train/loss")]
    assert losses == [(row["step"], row["loss"]) for row in report.history]
    assert len(found.Scalars("blocks/changed")) == len(report.blocks)


def test_a_missing_library_is_named_before_training(config, monkeypatch, tmp_path):
    gone = trackers._Tracker("no_such_library", "lrqat[tensorboard]", Fake)
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", gone)
    with pytest.raises(RuntimeUnavailableError, match=r"pip install 'lrqat\[tensorboard\]'"):
        config("tensorboard")
    with pytest.raises(UserError, match="did you mean trackio"):
        config("trackoi")
    assert not list(tmp_path.iterdir())
