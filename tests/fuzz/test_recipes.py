"""Recipes that nobody vouches for: read, and searched in names of modules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrqat.recipes.recipe_file import format_recipe, parse_recipe, read_recipe
from tests.fuzz.harness import altered_bytes, fuzz, outcome

MODULES = [f"model.layers.{i}.mlp.experts.{i}.gate_up_proj" for i in range(50)] + ["lm_head", ""]
CORPUS = [
    rb"""name: mine
rules:
  _proj$: q4_k
  layers\.(0|1|29)\.mlp\.down_proj: q6_k
  'layers\.[0-9]+\..*proj': q5_k
  ^lm_head$: none
""",
    rb'{"description": "x", "rules": {"a": &a q8_0, "b|c": *a, "d?e{2}": "none"}}',
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "recipe.yaml"


def read_and_search(path):
    recipe = read_recipe(path)
    assert parse_recipe(format_recipe(recipe)) == recipe
    return recipe.grids_of(MODULES)


@fuzz(15)
@given(data=st.data())
def test_bytes_of_recipes(path, data):
    path.write_bytes(data.draw(altered_bytes(CORPUS)))
    outcome(lambda: read_and_search(path))


@fuzz(15)
@given(
    pattern=st.text("ab.d|()[]*+?{}\\^$,0123", max_size=40), grid=st.sampled_from(["q4_0", "none"])
)
def test_patterns_of_recipes(path, pattern, grid):
    quoted = pattern.replace("'", "''")
    path.write_text(f"rules: {{'{quoted}': {grid}}}", encoding="utf-8")
    outcome(lambda: read_and_search(path))
