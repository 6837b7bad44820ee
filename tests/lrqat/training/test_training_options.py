"""Everything that a run can be told, each tried by a short real run."""

import numpy as np
import pytest

from exporters import gguf, onnx
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import UserError
from lrqat.evaluation.perplexity import Windows, perplexity
from lrqat.evaluation.text import EvaluationText, encode
from lrqat.models.reference import load_reference, torch_logits
from lrqat.training.config import TrainConfig
from lrqat.training.run import train

SHORT = {"steps": 3, "batch_size": 2, "sequence_length": 32, "rank": 4, "context": 32}
SHORT |= {
    "stages": "model",
    "eval_windows": 2,
    "save_every": 3,
    "teacher": "self",
    "importance_tokens": 64,
}


@pytest.fixture
def settings(tiny_model, text_file, tmp_path):
    paths = {"model": str(tiny_model), "data": str(text_file), "eval_data": str(text_file)}
    return SHORT | paths | {"output": str(tmp_path / "run")}


def reference_perplexity(report, settings):
    """Perplexity of the checkpoint, loaded again."""
    from lrqat.models import hub

    tokenizer = hub.load_tokenizer(report.output)
    tokens = encode(tokenizer, EvaluationText.read(settings["eval_data"]).text)
    windows = Windows.cut(tokens, settings["context"], None, settings["eval_windows"])
    model = load_reference(Checkpoint.open(report.output))
    return perplexity(torch_logits(model), windows).perplexity


@pytest.mark.parametrize(
    "options",
    [
        {"method": "rtn"},
        {"method": "scales"},
        {"method": "full"},
        {"method": "lora-then-rtn"},
        {"scale_learning_rate": 0.0},
        {"phi": "int"},
        {"phi": "fp16", "teacher": "none"},
        {"grid": "int3-asym-g64", "range_init": "importance"},
        {"grid": "iq4_nl", "range_init": "l2", "cross_entropy_weight": 0.5},
        {"grid_for": ("down_proj=q3_k", "lm_head=q8_0", "embed_tokens=q8_0")},
        {"gradient_checkpointing": True, "gradient_accumulation": 2},
        {"activations": "int8-token"},
        {"activations": "int8-tensor", "learn_activation_ranges": True},
        {"activations": "q8_0"},
        {"setting": "4-8-8"},
        {"data": "self"},
        {"streamed": True, "range_init": "l2"},
        {"streamed": True, "range_init": "l2", "phi": "int", "teacher": "none"},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()),
)
def test_a_run_gives_the_checkpoint_that_it_measured(settings, options):
    report = train(TrainConfig(**settings | options))
    assert np.isfinite(report.after.perplexity)
    assert reference_perplexity(report, settings) == pytest.approx(
        report.after.perplexity, rel=1e-6
    )
    if options.get("method") == "rtn":
        assert report.changed == 0
        assert report.after.perplexity == report.rounded.perplexity


def test_a_teacher_cache_is_written_once_and_used_again(settings, tmp_path):
    cached = settings | {"teacher_cache": str(tmp_path / "cache"), "teacher_top_k": 8}
    first = train(TrainConfig(**cached))
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    again = train(TrainConfig(**cached | {"output": str(tmp_path / "again")}))
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    assert first.after.perplexity == again.after.perplexity


def test_activations_are_exported_as_trained_or_refused(settings):
    report = train(TrainConfig(**settings | {"activations": "int8-token", "method": "rtn"}))
    checkpoint = Checkpoint.open(report.output)
    assert any("llama.cpp does not round" in r for r in gguf.plan(checkpoint).refusals)
    plan = onnx.plan(checkpoint)
    assert not plan.refusals
    assert {rounding.grid.name for rounding in plan.roundings.values()} == {"int8-token"}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"data": "self", "eval_data": None}, "--data self needs --eval-data"),
        ({"teacher": "none", "teacher_cache": "x"}, "--teacher-cache needs a --teacher"),
        ({"imatrix": "x", "range_init": "l2"}, r"--imatrix .* --range-init"),
        ({"rank": 512}, "--rank 512 is larger than"),
        ({"phi": "fixed", "grid": "iq4_nl"}, "--phi fixed does not go with --grid iq4_nl"),
        ({"phi": "fixed", "grid": "q8_0"}, "--phi fixed does not go with --grid q8_0"),
        ({"setting": "4-8-8", "kv_bits": 4}, "--setting, or --activations and --kv-bits"),
        ({"setting": "4-8-8", "grid": "q8_0"}, "--setting 4-8-8 asks for 4-bit weights"),
        ({"kv_bits": 5}, "--kv-bits 5"),
        ({"streamed": True, "data": "self"}, "--streamed .* --data self"),
        ({"streamed": True, "range_init": "importance"}, "--streamed .* --range-init importance"),
        (
            {"activations": "int8-token", "learn_activation_ranges": True},
            "--learn-activation-ranges needs a static grid",
        ),
        ({"optimizer": "sgd"}, "--optimizer 'sgd' is unknown"),
        ({"method": "magic"}, "--method 'magic' is unknown"),
        ({"grid_for": ("down_proj",)}, "must be PATTERN=GRID"),
        ({"grid_for": ("no_such=q8_0",)}, "'no_such' matches no"),
        ({"cross_entropy_weight": 1.5}, "--cross-entropy-weight 1.5"),
        ({"recipe": "Q4_0", "target_size": "1MB"}, "--recipe does not go with --target-size"),
        ({"target_size": "1MB", "target_bits": 3.0}, "give one of them"),
        ({"for_": "cuda"}, "--for chooses grids under a budget"),
        ({"target_size": "much"}, "--target-size 'much' is no size"),
        (
            {"target_size": "1MB", "streamed": True},
            "--streamed has no whole model to measure a bud",
        ),
        ({"recipe": "missing.yaml"}, "there is no such file"),
        ({"recipe": "Q4_K_X"}, "unknown recipe 'Q4_K_X'"),
        ({"embedding_grid": "q9"}, "unknown grid 'q9'"),
        ({"misfit": "refuse", "grid": "q4_k"}, "--misfit refuse is asked for"),
    ],
)
def test_impossible_combinations_name_both_flags(settings, options, match):
    from lrqat.training.plan import plan_training

    with pytest.raises(UserError, match=match):
        plan_training(TrainConfig(**settings | options))
