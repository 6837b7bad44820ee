"""Embedding, head, recipes and misfits: who overrules whom, and where rows go that do not fit."""

from dataclasses import replace

import pytest

from lrqat.errors import UserError
from lrqat.grids.backends import BACKENDS
from lrqat.grids.grid import GRIDS
from lrqat.grids.misfits import chain, fitting
from lrqat.models.surgery import plan_surgery, weight_shapes
from lrqat.recipes.recipe import Recipe, Rule
from tests.support.zoo import make

EMBEDDING, HEAD, DOWN = "model.embed_tokens", "lm_head", "model.layers.0.mlp.down_proj"
RECIPE = Recipe((Rule("embed", "q5_0"), Rule("lm_head", "q6_k"), Rule("down_proj", "q5_1")))


def grids(name, **options):
    plan = plan_surgery(make(name), "q4_0", **options)
    return {module: target.grid.name for module, target in plan.quantized.items()}


def test_embedding_and_head_have_a_default_and_grids_of_their_own():
    assert EMBEDDING not in grids("llama")
    both = grids("llama", embedding_and_head="q8_0")
    assert (both[EMBEDDING], both[HEAD], both[DOWN]) == ("q8_0", "q8_0", "q4_0")
    one = grids("llama", embedding_and_head="q8_0", embedding_grid="none", head_grid="q5_0")
    assert EMBEDDING not in one
    assert one[HEAD] == "q5_0"


@pytest.mark.parametrize("option", ["embedding_grid", "head_grid"])
def test_a_tied_weight_needs_one_of_the_two(option):
    assert grids("qwen3", embedding_and_head="q8_0", **{option: "q5_0"})[EMBEDDING] == "q5_0"


def test_a_tied_weight_takes_no_two_grids():
    with pytest.raises(UserError, match=r"one weight .*give one grid"):
        grids("qwen3", embedding_grid="q8_0", head_grid="q5_0")


def test_a_recipe_overrules_the_default_and_is_overruled_by_all_else():
    found = grids("llama", recipe=RECIPE, embedding_and_head="q8_0", misfit="next")
    assert (found[EMBEDDING], found[HEAD], found[DOWN]) == ("q5_0", "q8_0", "q5_1")
    found = grids("llama", recipe=RECIPE, embedding_grid="q4_1", grid_for={"down": "q8_0"})
    assert (found[EMBEDDING], found[DOWN]) == ("q4_1", "q8_0")
    assert DOWN not in grids("llama", recipe=RECIPE, keep=["down_proj"])


def test_a_recipe_can_leave_a_weight_unquantized():
    plan = plan_surgery(make("llama"), "q4_0", recipe=Recipe((Rule("down_proj", "none"),)))
    assert plan.kept[DOWN] == "--recipe none"


def test_rows_that_do_not_fit_go_on_the_next_grid_and_the_plan_says_so():
    plan = plan_surgery(make("llama"), "q4_k")
    target = plan.quantized[DOWN]
    assert (target.grid.name, target.asked.name) == ("q4_0", "q4_k")
    assert DOWN in plan_surgery(make("llama"), "q4_k", grid_for={"up": "q4_0"}, misfit="keep").kept
    with pytest.raises(UserError, match=r"layers\.0.*not a multiple of .*--grid-for, as q4_0"):
        plan_surgery(make("llama"), "q4_k", misfit="refuse")


@pytest.mark.parametrize(
    ("grid", "width", "expected"),
    [("q2_k", 576, "q2_0"), ("q4_k", 576, "q4_0"), ("q6_k", 896, "q8_0"), ("q3_k", 640, "q4_0"),
     ("iq4_xs", 960, "iq4_nl"), ("int4-g128", 576, "int4-g64"), ("int4-g128", 96, "int4-g32"),
     ("int2-asym-g256", 100, "int2-asym-channel"), ("q2_0", 96, "q4_0"), ("q4_0", 100, None),
     ("q4_k", 512, "q4_k")],
)  # fmt: skip
def test_the_next_grid_is_the_one_that_loses_least_for_its_bytes(grid, width, expected):
    found = fitting(GRIDS[grid], width)
    assert (found and found.name) == expected


def test_every_chain_ends_and_asks_less_of_a_row_at_each_step():
    for grid in GRIDS.values():
        blocks = [each.block or 1 for each in chain(grid)]
        assert blocks == sorted(blocks, reverse=True)
        assert len(set(map(id, chain(grid)))) == len(blocks)


def test_backends_name_grids_that_there_are():
    for backend in BACKENDS.values():
        lists = (backend.fast, backend.runs, backend.slow, backend.refused)
        named = [name for names in lists for name in names]
        assert set(named) <= set(GRIDS)
        assert len(named) == len(set(named))
        assert backend.source


def test_shapes_are_those_of_all_weights_that_can_be_on_a_grid():
    shapes = weight_shapes(make("qwen3_moe"))
    assert shapes["model.layers.0.mlp.experts.down_proj"] == (4, 64, 32)
    assert not any(name.endswith("mlp.gate") for name in shapes)
    assert shapes[EMBEDDING] == (288, 64)


def test_eight_bits_beside_fewer_settle_an_embedding_and_other_grids_do_not():
    def settled(grid, **options):
        quantized = plan_surgery(make("llama"), grid, **options).quantized
        return {name for name, target in quantized.items() if target.settled}

    assert settled("q4_0", embedding_and_head="q8_0") == {EMBEDDING, HEAD}
    assert settled("q4_0", embedding_grid="q5_0", head_grid="q8_0") == {HEAD}
    assert not settled("q8_0", embedding_and_head="q8_0")
    target = plan_surgery(make("llama"), "q4_0", embedding_and_head="q8_0").quantized[EMBEDDING]
    assert not replace(target, grid=GRIDS["iq4_nl"]).settled
