"""llama-quantize's recipes, held against its source; runtime_tests asks llama-quantize itself."""

import dataclasses

import pytest

from lrqat.errors import RecipeError
from lrqat.grids.grid import GRIDS
from lrqat.recipes.llama_quantize import choose_types, find_mixture, recipe_of
from lrqat.recipes.mixtures import MIXTURES
from lrqat.recipes.model_shape import ModelShape
from lrqat.recipes.recipe_file import format_recipe, parse_recipe
from tests.support.gguf_shells import decoder

LLAMA = decoder(layers=16, heads=8, kv_heads=4, hidden=256, inner=512)
SMOLLM2 = decoder(layers=30, heads=9, kv_heads=3, hidden=576, inner=1536, tied=True)


def test_q4_k_m_has_more_bits_for_half_of_value_and_down():
    recipe = recipe_of("q4_k_m", LLAMA)
    assert recipe.name == "Q4_K_M"
    assert [(rule.pattern, rule.grid) for rule in recipe.rules] == [
        (r"^model\.embed_tokens$", "q4_k"),
        (r"self_attn\.q_proj$", "q4_k"),
        (r"self_attn\.k_proj$", "q4_k"),
        (r"self_attn\.v_proj$", "q6_k"),
        (r"layers\.(2|3|5|6|8|9|11|12)\.self_attn\.v_proj$", "q4_k"),
        (r"self_attn\.o_proj$", "q4_k"),
        (r"mlp\.gate_proj$", "q4_k"),
        (r"mlp\.up_proj$", "q4_k"),
        (r"mlp\.down_proj$", "q6_k"),
        (r"layers\.(2|3|5|6|8|9|11|12)\.mlp\.down_proj$", "q4_k"),
        (r"^lm_head$", "q6_k"),
    ]
    assert parse_recipe(format_recipe(recipe)) == recipe


def test_rows_that_fit_no_block_of_256_get_what_takes_its_place():
    types = choose_types("Q4_K_M", SMOLLM2)
    assert types["model.embed_tokens"] == "Q8_0"  # the head is this weight
    assert types["model.layers.0.self_attn.v_proj"] == "Q8_0"
    assert types["model.layers.0.self_attn.q_proj"] == "Q5_0"
    assert types["model.layers.0.mlp.down_proj"] == "Q6_K"
    assert types["model.layers.4.mlp.down_proj"] == "Q4_K"
    assert choose_types("Q2_K", SMOLLM2)["model.layers.4.mlp.up_proj"] == "Q4_0"


def test_rows_of_no_block_stay_unquantized():
    recipe = recipe_of("Q8_0", decoder(layers=1, heads=1, kv_heads=1, hidden=48, inner=64))
    assert recipe.grid_of("model.layers.0.mlp.up_proj") == "none"
    assert recipe.grid_of("model.layers.0.mlp.down_proj") == "q8_0"


@pytest.mark.parametrize("name", MIXTURES)
def test_every_recipe_can_be_had_or_says_what_type_is_missing(name):
    types = choose_types(name, LLAMA)
    assert types.keys() == LLAMA.shapes.keys()
    missing = {kind for kind in types.values() if kind.lower() not in GRIDS}
    if missing:
        with pytest.raises(
            RecipeError, match=f"{name} gives .*for which there is no such grid"
        ) as caught:
            recipe_of(name, LLAMA)
        assert all(f"{kind} to" in str(caught.value) for kind in missing)
    else:
        grids = recipe_of(name, LLAMA).grids_of(LLAMA.shapes)
        assert grids == {module: kind.lower() for module, kind in types.items()}


def test_an_importance_matrix_changes_what_it_changes():
    first = "model.layers.0.mlp.down_proj"
    for name, without, by_imatrix in (("Q4_0", "Q4_0", "Q4_1"), ("IQ4_NL", "Q5_K", "IQ4_NL")):
        assert choose_types(name, LLAMA)[first] == without
        assert choose_types(name, LLAMA, imatrix=True)[first] == by_imatrix
    assert "with an importance matrix" in recipe_of("Q4_0", LLAMA, imatrix=True).description


def test_aliases_are_those_of_llama_quantize():
    assert find_mixture("q4_k")[0] == "Q4_K_M"
    with pytest.raises(RecipeError, match=r"unknown recipe 'Q4_KM': did you mean Q4_K_M"):
        find_mixture("Q4_KM")


def test_what_is_not_known_is_refused():
    shapes = LLAMA.shapes | {"model.layers.0.other": (256, 256)}
    with pytest.raises(RecipeError, match=r"what model\.layers\.0\.other is"):
        choose_types("Q4_0", dataclasses.replace(LLAMA, shapes=shapes))
    with pytest.raises(RecipeError, match="exceptions for falcon"):
        choose_types("Q4_0", dataclasses.replace(LLAMA, model_type="falcon"))


CONFIG = {
    "model_type": "qwen3_moe", "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "num_experts": 4,
}  # fmt: skip


def test_a_shape_is_read_of_a_configuration():
    shape = ModelShape.of({"text_config": CONFIG}, {}, tied=True)
    assert shape == ModelShape({}, 3, 8, 2, 4, True, "qwen3_moe")
    assert shape.sharing == 4
    gpt2 = ModelShape.of({"model_type": "gpt2", "n_layer": 2, "n_head": 4}, {}, tied=False)
    assert gpt2 == ModelShape({}, 2, 4, 4, 0, False, "gpt2")


@pytest.mark.parametrize("value", [[2, 4], 0, -1, "2", True])
def test_a_configuration_without_one_number_for_all_layers_is_refused(value):
    with pytest.raises(RecipeError, match="num_key_value_heads"):
        ModelShape.of(CONFIG | {"num_key_value_heads": value}, {}, tied=True)
