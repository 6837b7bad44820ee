"""Runs whose grids are chosen for a size, and the command that only chooses them."""

import json

import pytest

from exporters import gguf
from lrqat.checkpoint.reader import Checkpoint
from lrqat.cli import plan, train
from lrqat.errors import UserError
from lrqat.recipes.recipe_file import read_recipe

SIZE = 150_000  # bytes; the tiny model has 0.4 million weights
SHORT = ["--steps", "2", "--rank", "4", "--batch-size", "1", "--sequence-length", "64"]
SHORT += [
    "--stages",
    "model",
    "--teacher",
    "none",
    "--context",
    "64",
    "--eval-windows",
    "2",
    "--importance-tokens",
    "512",
]


def arguments(tiny_model, text_file, folder):
    return ["--model", str(tiny_model), "--data", str(text_file), "--output", str(folder), *SHORT]


@pytest.fixture(scope="module")
def recipe_file(tiny_model, text_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipes") / "mine.yaml"
    asked = [str(tiny_model), "--data", str(text_file), "--target-size", str(SIZE)]
    assert plan.main([*asked, "--save-recipe", str(path)]) == 0
    return path


def test_the_file_of_a_run_under_a_budget_is_within_it(
    tiny_model, text_file, recipe_file, tmp_path
):
    out = tmp_path / "run"
    assert train.main([*arguments(tiny_model, text_file, out), "--target-size", str(SIZE)]) == 0
    checkpoint = Checkpoint.open(out)
    asked = read_recipe(recipe_file).grids_of(checkpoint.quantized_names)
    assert {name: checkpoint.grid(name).name for name in checkpoint.quantized_names} == asked
    assert len(checkpoint.grids) > 1
    path = tmp_path / gguf.default_name(checkpoint)
    gguf.write(gguf.plan(checkpoint), path)
    assert 0.98 * SIZE < path.stat().st_size <= SIZE


def test_a_run_goes_on_with_the_grids_that_it_began_with(tiny_model, text_file, tmp_path, capfd):
    out = tmp_path / "run"
    asked = [*arguments(tiny_model, text_file, out), "--save-every", "1"]
    asked += ["--target-size", str(SIZE)]
    assert train.main(asked) == 0
    first = Checkpoint.open(out)
    capfd.readouterr()
    assert train.main([*asked, "--resume", "auto", "--overwrite"]) == 0
    assert "choosing a grid" not in "".join(capfd.readouterr())
    again = Checkpoint.open(out)
    assert {n: again.grid(n) for n in again.quantized_names} == {
        n: first.grid(n) for n in first.quantized_names
    }


def test_a_recipe_is_taken_by_train(tiny_model, text_file, recipe_file, tmp_path, capfd):
    asked = arguments(tiny_model, text_file, tmp_path / "run")
    asked += ["--recipe", str(recipe_file), "--dry-run", "--json"]
    assert train.main(asked) == 0
    planned = json.loads(capfd.readouterr().out)["quantized"]
    recipe = read_recipe(recipe_file)
    assert {n: t["grid"] for n, t in planned.items()} == recipe.grids_of(planned)


def test_the_frontier_falls_and_has_the_recipes_of_llama_quantize(
    tiny_model, text_file, tmp_path, capfd
):
    picture = tmp_path / "frontier.png"
    asked = [str(tiny_model), "--data", str(text_file), "--frontier", "--picture", str(picture)]
    assert plan.main([*asked, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    sizes, losses = zip(*((p["bytes"], p["estimate"]) for p in found["frontier"]), strict=True)
    assert list(sizes) == sorted(sizes)
    assert losses[-1] < losses[0] / 100
    assert "Q8_0" in found["recipes"]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ([], "nothing to plan"),
        (["--target-size", "10kB"], "ask for a larger size"),
        (["--target-size", "much"], "is no size"),
    ],
)
def test_what_cannot_be_planned_is_said(tiny_model, text_file, options, match):
    with pytest.raises(UserError, match=match):
        plan.main([str(tiny_model), "--data", str(text_file), *options])
