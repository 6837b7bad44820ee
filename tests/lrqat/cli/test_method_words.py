"""What a run says of itself, by method: rounding is not called training."""

import json
import re

import pytest

from lrqat.cli import train

SMALL = ["--batch-size", "2", "--sequence-length", "32", "--context", "32", "--eval-windows", "2"]
SMALL += ["--importance-tokens", "64", "--rank", "4", "--block-steps", "2"]


@pytest.fixture
def run(tiny_model, text_file, tmp_path, capfd):
    """Function (method, *options) -> (what the console shows, the folder)."""

    def call(method, *options):
        folder = tmp_path / method
        paths = ["--model", tiny_model, "--data", text_file, "--output", folder]
        arguments = [*paths, "--method", method, *SMALL, *options]
        capfd.readouterr()
        assert train.main([str(argument) for argument in arguments]) == 0
        said = capfd.readouterr()
        return said.out + said.err, folder

    return call


def test_round_to_nearest_never_speaks_of_training(run):
    said, folder = run("rtn")
    card = (folder / "README.md").read_text()
    assert "nothing is trained: weights are rounded to nearest" in said
    assert "perplexity, rounded:" in said
    assert "every weight is rounded to nearest; fused checkpoint in" in said
    assert "2 blocks of 32 tokens to measure inputs on" in said, "no text for steps is read"
    assert "rounded by lrqat" in card
    assert "(`--method rtn`)" in card
    assert "tags:\n- compressed-tensors\n" in card
    assert not re.search(r"\btrain", said.replace("nothing is trained", "") + card)
    assert "rank" not in said
    assert json.loads((folder / "lrqat.json").read_text())["training"]["tokens"] == 0
    assert not (folder / "training.png").exists()


def test_round_to_nearest_asks_its_teacher_for_nothing_that_only_training_needs(run, tmp_path):
    cache = tmp_path / "cache"
    said, _ = run("rtn", "--teacher", "self", "--teacher-cache", cache)
    assert "KL from the teacher" in said
    assert not cache.exists()


def test_plain_lora_is_said_to_be_rounded_in_the_end(run):
    said, folder = run("lora-then-rtn", "--steps", "2")
    assert "perplexity, trained and then rounded:" in said
    assert "s of training, then rounded to nearest; fused checkpoint" in said
    assert "integers changed; " not in said, "what would they have been before?"
    card = (folder / "README.md").read_text()
    assert "trained and then rounded by lrqat" in card
    assert "tags:\n- compressed-tensors\n" in card


def test_lr_qat_is_trained(run):
    said, folder = run("lr-qat", "--steps", "2")
    assert "perplexity, trained:" in said
    assert "trainable parameters (rank 4), float32 on cpu" in said
    assert re.search(r"[0-9.]+% of the integers changed; \d+ s of training; fused", said)
    card = (folder / "README.md").read_text()
    assert "trained by lrqat" in card
    assert "--method" not in card
    assert "tags:\n- lr-qat\n- compressed-tensors\n" in card


def test_the_rank_is_shown_where_there_is_one(run):
    said, _ = run("scales", "--dry-run")
    assert "trainable parameters, float32 on cpu" in said


def test_a_report_in_json_names_the_method(run):
    said, _ = run("rtn", "--json")
    found = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert (found["method"], found["made_worse"]) == ("rtn", False)
