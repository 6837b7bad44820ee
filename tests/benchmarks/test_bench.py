"""The benchmark on tiny sizes: what it counts and how it divides; no time decides anything."""

import json
import shutil
import sys

import pytest
import torch

from benchmarks import bench as tool
from benchmarks import timing as turns
from benchmarks import training_step as bench
from lrqat.cli import command
from lrqat.errors import GridError, ModelError, UserError
from lrqat.layers.linear import LRQATLinear
from lrqat.layers.lora import LoRALinear

TINY = {"width": 256, "layers": 1, "rank": 4}


def test_ratios_are_taken_round_by_round():
    # Alternately quiet and busy rounds: the medians of the times alone would say 1.5.
    full = [(1.0, 1.0), (3.0, 1.0), (1.0, 1.0), (3.0, 1.0)]
    other = [(1.2, 1.1), (3.6, 1.1), (1.2, 1.1), (3.6, 1.1)]
    results = turns.summarise({bench.FULL: full, "q4_0": other}, bench.FULL)
    assert results["q4_0"].ratio == pytest.approx((1.2, 1.2, 1.2))
    assert results["q4_0"].cpu_ratio == pytest.approx((1.1, 1.1, 1.1))
    assert results["q4_0"].wall == pytest.approx(2.4)
    assert results[bench.FULL].ratio == (1, 1, 1)


def test_the_spread_is_the_quartiles():
    full = [(1.0, 1.0)] * 5
    other = [(float(i), 1.0) for i in (5, 1, 4, 2, 3)]
    assert turns.summarise({"a": full, "b": other}, "a")["b"].ratio == (2, 3, 4)


@pytest.mark.parametrize("dtype", bench.DTYPES)
def test_contenders_train_what_they_say(dtype):
    stack = bench.Stack(dtype=dtype, **TINY)
    kinds = {bench.FULL: torch.nn.Linear, bench.LORA: LoRALinear, "int4-channel": LRQATLinear}
    trains = {
        bench.FULL: ({"weight"}, set()),
        bench.LORA: ({"lora_a", "lora_b"}, {"phi", "weight"}),
        "int4-channel": ({"lora_a", "lora_b", "scale"}, {"phi", "weight"}),
    }
    for name, kind in kinds.items():
        contender = bench.Contender(stack, name)
        layer = contender.model.layers[0].mlp.down_proj
        assert type(layer) is kind
        before = {n: p.detach().clone() for n, p in contender.model.layers.named_parameters()}
        contender.optimizer.param_groups[0]["lr"] = 1e-2
        contender.step(32)
        after = dict(contender.model.layers.named_parameters())
        moved = {n.rsplit(".", 1)[1] for n, p in after.items() if not torch.equal(p, before[n])}
        still = {n.rsplit(".", 1)[1] for n, p in after.items() if torch.equal(p, before[n])}
        assert (moved, still) == trains[name]


@pytest.mark.parametrize("dtype", bench.DTYPES)
def test_a_step_needs_at_most_two_matrices_beside_activations(dtype, monkeypatch):
    # Blocks as small beside this layer as the real ones are beside a large one.
    monkeypatch.setattr("lrqat.layers.weight.BLOCK_WEIGHTS", 1 << 13)
    stack = bench.Stack(dtype=dtype, **TINY)
    memory = bench.measure_memory(stack, ["q4_0", "int4-channel"], tokens=64)
    for grid in ("q4_0", "int4-channel"):
        assert 1 <= memory[grid].matrices <= 2
        assert memory[grid].activations > 0
    # The dL/dW of full fine-tuning: the measure sees a matrix where there is one.
    assert 0.9 < memory[bench.FULL].matrices < 1.2


def test_activations_grow_with_the_tokens_and_temporaries_do_not():
    stack = bench.Stack(**TINY)
    few, many = (bench.measure_memory(stack, [], tokens=t)[bench.FULL] for t in (64, 128))
    assert few.weights == many.weights
    assert many.activations == pytest.approx(2 * few.activations, rel=0.5)


def test_every_contender_takes_every_round():
    seen = []
    result = bench.time_steps(
        bench.Stack(**TINY),
        [bench.LORA, "q4_0", "q4_0"],
        tokens=16,
        rounds=2,
        progress=lambda items: seen.extend(items) or seen,
    )
    assert list(result) == [bench.FULL, bench.LORA, "q4_0"]
    assert seen == [0, 1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"width": 1000}, "--width 1000"),
        ({"layers": 0}, "--layers 0"),
    ],
)
def test_sizes_that_do_not_work_are_refused(change, says):
    with pytest.raises(UserError, match=says):
        bench.Stack(**(TINY | change))


def test_other_mistakes_are_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(bench.Stack, "build", lambda *_: pytest.fail("built a model"))
    stack = bench.Stack(**TINY)
    with pytest.raises(UserError, match="--rounds 1"):
        bench.time_steps(stack, [], tokens=8, rounds=1)
    with pytest.raises(UserError, match="--tokens 0"):
        bench.measure_memory(stack, [], tokens=0)
    with pytest.raises(GridError, match="q4_00"):
        bench.time_steps(stack, ["q4_00"], tokens=8, rounds=2)


def test_rank_above_the_width_is_refused():
    with pytest.raises(UserError, match="--rank 300"):
        bench.time_steps(bench.Stack(256, 1, "float32", 300), ["q4_0"], tokens=8, rounds=2)


@pytest.mark.slow
def test_forms_of_an_onnx_folder_are_compared(capsys):
    for library in ("onnxruntime", "onnxruntime_genai"):
        pytest.importorskip(library)
    sizes = ["--width", "256", "--layers", "1", "--prompt", "8", "--rounds", "2"]
    assert tool.main(["onnx", *sizes, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["results"]
    for what in ("decode", "prefill"):
        assert result[what].keys() == {"qdq", "builder", "builder in place", "float32"}
        assert result[what]["qdq"]["ratio"] == {"lower": 1, "median": 1, "upper": 1}
        assert all(times["wall_seconds"] > 0 for times in result[what].values())


SMALL = ["--width", "256", "--layers", "1", "--tokens", "16", "--rank", "4", "--grids", "q4_0"]


@pytest.mark.parametrize(
    ("what", "keys"),
    [
        ("step", {"wall_seconds", "cpu_seconds", "ratio", "cpu_ratio", "cpu_ratio_interval"}),
        ("memory", {"total", "weights", "matrices", "activations"}),
    ],
)
def test_json_holds_every_contender(what, keys, capsys):
    rounds = ["--rounds", "2"] if what == "step" else []
    assert tool.main([what, *SMALL, *rounds, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    result = json.loads(captured.out)
    assert result["results"].keys() == {"full", "lora", "q4_0"}
    assert all(row.keys() == keys for row in result["results"].values())
    assert result["settings"]["tokens"] == 16
    assert "contender" in captured.err


def test_the_command_refuses_an_unknown_grid(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tools/bench.py", "step", "--grids", "q4_00", "--json"])
    with pytest.raises(SystemExit) as exit_status:
        command.run(tool.main)
    captured = capsys.readouterr()
    assert exit_status.value.code == 2
    assert captured.out == ""
    assert "q4_00" in captured.err


@pytest.mark.parametrize("more", [[], ["--gradient-checkpointing", "--phi", "int"]])
def test_a_whole_model_is_loaded_and_trained(tiny_model, more, capsys):
    arguments = ["--model", str(tiny_model), "--rank", "4", "--sequence-length", "16", *more]
    assert tool.main(["model", *arguments, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert results.keys() == {"load", "steps"}
    assert all(part["peak"] >= part["base"] > 0 < part["seconds"] for part in results.values())


def test_a_whole_model_needs_weights_that_are_there(tiny_model, tmp_path):
    shutil.copy(tiny_model / "config.json", tmp_path)
    with pytest.raises(ModelError):
        tool.main(["model", "--model", str(tmp_path), "--rank", "4"])
