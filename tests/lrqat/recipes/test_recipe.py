"""Recipes: the last pattern counts, YAML and back, few rules of a whole model, and refusals."""

import re

import pytest

from lrqat.errors import OutputError, RecipeError
from lrqat.grids.grid import GRIDS
from lrqat.recipes.compact import compact
from lrqat.recipes.recipe import Recipe, Rule
from lrqat.recipes.recipe_file import format_recipe, parse_recipe, read_recipe, write_recipe

TEXT = r"""
name: mine
description: four bits, some layers finer
rules:
  _proj$: q4_k
  mlp\.down_proj: Q5_K
  layers\.(0|1|29)\.mlp\.down_proj: q6_k
  ^lm_head$: none
"""
DOWN = [f"model.layers.{i}.mlp.down_proj" for i in range(30)]


def test_the_last_pattern_that_is_found_counts():
    recipe = parse_recipe(TEXT)
    assert (recipe.name, recipe.description) == ("mine", "four bits, some layers finer")
    assert recipe.grid_of("model.layers.3.self_attn.q_proj") == "q4_k"
    assert [recipe.grid_of(name) for name in DOWN[:3]] == ["q6_k", "q6_k", "q5_k"]
    assert recipe.grid_of("lm_head") == "none"
    assert recipe.grid_of("model.embed_tokens") is None
    assert recipe.grids_of(["lm_head", "model.embed_tokens"]) == {"lm_head": "none"}


def test_rules_that_no_module_of_a_model_has_are_known():
    rules = parse_recipe(TEXT).unused([*DOWN, "model.embed_tokens"])
    assert rules == [Rule("^lm_head$", "none")]


def test_a_file_is_read_as_it_was_written(tmp_path):
    recipe = Recipe((Rule("^a$", "q4_k"), Rule(": '#ä&*", "none"), Rule("", "q8_0")), "x: y", "- z")
    write_recipe(recipe, tmp_path / "a.yaml")
    assert read_recipe(tmp_path / "a.yaml") == recipe
    with pytest.raises(OutputError, match="exists"):
        write_recipe(recipe, tmp_path / "a.yaml")


def test_grids_of_a_model_take_few_rules_that_list_layers():
    more = {0, 1, 2, 27}
    grids = {"model.embed_tokens": "q8_0"}
    grids |= {name: "q6_k" if i in more else "q4_k" for i, name in enumerate(DOWN)}
    grids |= {name.replace("down", "up"): "q4_k" for name in DOWN}
    grids["lm_head"] = "none"
    recipe = compact(grids, "Q4_K_M")
    assert [(rule.pattern, rule.grid) for rule in recipe.rules] == [
        (r"^model\.embed_tokens$", "q8_0"),
        (r"mlp\.down_proj$", "q4_k"),
        (r"layers\.(0|1|2|27)\.mlp\.down_proj$", "q6_k"),
        (r"mlp\.up_proj$", "q4_k"),
        (r"^lm_head$", "none"),
    ]
    assert parse_recipe(format_recipe(recipe)).grids_of(grids) == grids


def test_patterns_are_whole_names_where_short_ones_are_found_in_others():
    grids = {
        "model.layers.0.mlp.down_proj": "q4_k", "model.layers.1.mlp.down_proj": "q6_k",
        "mtp.layers.0.mlp.down_proj": "q8_0", "mtp.layers.0.head.mlp.down_proj": "q5_k",
    }  # fmt: skip
    recipe = compact(grids)
    assert recipe.grids_of(grids) == grids
    assert recipe.rules[0].pattern == r"^model\.layers\.\d+\.mlp\.down_proj$"


def test_a_rule_of_a_hundred_layers_is_short_enough_for_yaml():
    grids = {f"model.layers.{i}.mlp.down_proj": ["q4_k", "q6_k"][i % 2] for i in range(199)}
    recipe = compact(grids)
    assert recipe.grids_of(grids) == grids
    assert "?" not in format_recipe(recipe)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a recipe must be a mapping"),
        ("- a", "a recipe must be a mapping"),
        ("name: x", "it has no 'rules'"),
        ("rules: {}", "without rules"),
        ("rules: [a]", "'rules' must be a mapping"),
        ("rule: {a: q4_0}", "unknown key 'rule': did you mean rules?"),
        ("rules: {a: q4}", r"the pattern 'a' asks for an unknown grid 'q4': did you mean q4_"),
        ("rules: {a: null}", "the grid of 'a' is empty; to leave a weight unquantized write none"),
        ("rules: {a: [q4_0]}", "the grid of 'a' must be one word"),
        ("rules: {a: q4_0, a: q8_0}", "'a' occurs twice"),
        ("rules: {a: q4_0}\nname: {}", "'name' must be one word"),
        ("rules: {a: q4_0}\n---\nb: c", "found another document in line 2"),
        ("rules: {a: q4_0", "it is no YAML: .* in line"),
        ("[" * 3000, "nested too deeply"),
        ("a: *b", "undefined alias 'b' in line 1"),
        ("rules: &a {x: *a}", "the grid of 'x' must be one word"),
        ("rules: {a: !!python/object/apply:os.getcwd []}", "the grid of 'a' must be one word"),
        ("rules: {'(': q4_0}", "no regular expression"),
        ("rules: {'(a|a)+b': q4_0}", "repeats a group"),
        ("rules: {'(a)?b': q4_0}", "repeats a group"),
        (f"rules: {{{'a' * 1001}: q4_0}}", "has 1,001 characters"),
        (r"rules: {'(a)\1': q4_0}", "refers back"),
        ("rules: {'(?=a)b': q4_0}", "begins with"),
        (f"rules: {{'{'(a|a)' * 40}b': q4_0}}", "could match in [0-9,]* ways"),
        ("rules: {'.*.*.*.*b': q4_0}", "could match in 16,777,216 ways"),
        ("\0", "no YAML: unacceptable character"),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_message(text, said):
    with pytest.raises(RecipeError, match=said):
        parse_recipe(text)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"rules:\n" + b"  a: q4_0\n" * 10_000, "has more than 65,536 bytes"),
        (b"rules: {a: \xff}", "is not UTF-8"),
        (b"rules: {a: q4_1x}", "r.yaml cannot be used: the pattern 'a' asks for an unknown grid"),
        (b"rules: {%s}" % b", ".join(b"a%d: q8_0" % i for i in range(1001)), "1,001 rules"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(data, said, tmp_path):
    (tmp_path / "r.yaml").write_bytes(data)
    with pytest.raises(RecipeError, match=said) as caught:
        read_recipe(tmp_path / "r.yaml")
    assert str(tmp_path) in str(caught.value)


def test_no_file_is_a_message(tmp_path):
    with pytest.raises(RecipeError, match=re.escape(str(tmp_path / "no.yaml"))):
        read_recipe(tmp_path / "no.yaml")


def test_every_grid_can_be_asked_for():
    names = sorted(GRIDS)
    recipe = Recipe(tuple(Rule(f"^m{i}$", name.upper()) for i, name in enumerate(names)))
    assert [recipe.grid_of(f"m{i}") for i in range(len(names))] == names
