"""`general.file_type`: read from the file by the `gguf` package, where that knows the types."""

import pytest
from gguf import GGUFReader, LlamaFileType

from exporters import gguf
from exporters.gguf.file_type import find_file_type
from lrqat.recipes.llama_quantize import recipe_of
from lrqat.training.recipes import model_shape
from tests.support.checkpoints import fused
from tests.support.zoo import make_from, small_llama

Q2_0 = 41  # which gguf 0.19 has no name for, and does not read
LAYERS = {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 512}
MISFIT = LAYERS | {"hidden_size": 64, "intermediate_size": 256}


def file_type(checkpoint, folder):
    path = folder / "model.gguf"
    gguf.write(gguf.plan(checkpoint), path)
    return GGUFReader(path).fields["general.file_type"].contents()


@pytest.mark.parametrize(
    ("grid", "expected"), [("q4_0", LlamaFileType.MOSTLY_Q4_0), ("q2_0", Q2_0)]
)
def test_an_embedding_that_is_most_of_the_file_does_not_name_it(grid, expected, make_small):
    grids = {"embed_tokens": "q8_0", "lm_head": "q8_0"}
    checkpoint = make_small(grid, grids, hidden=64, intermediate=64)
    plan = gguf.plan(checkpoint)
    sizes = {t.source.name: t.source.rows for t in plan.tensors if t.source.quantized}
    others = sum(rows for name, rows in sizes.items() if name.startswith("blk."))
    assert sizes["token_embd.weight"] + sizes["output.weight"] > 2 * others
    assert find_file_type(plan) == expected


@pytest.mark.parametrize("sizes", [LAYERS, MISFIT], ids=["whole blocks", "misfits"])
@pytest.mark.parametrize("name", ["Q4_K_M", "Q3_K_M", "Q5_K_M", "Q4_K_S", "IQ4_NL"])
def test_types_of_a_recipe_have_its_number(name, sizes, tmp_path):
    config = small_llama(**sizes)
    shape = model_shape(make_from(config))
    grids = recipe_of(name, shape).grids_of(shape.shapes)
    exact = {f"^{module}$".replace(".", r"\."): grid for module, grid in grids.items()}
    checkpoint = fused(config, tmp_path / "fused", keep=(), grid_for=exact)
    assert file_type(checkpoint, tmp_path) == LlamaFileType[f"MOSTLY_{name}"]


def test_a_mix_that_is_no_recipe_is_named_after_most_weights(make_small, tmp_path):
    checkpoint = make_small("q5_0", {"down_proj": "q8_0", "q_proj": "q4_0"})
    assert file_type(checkpoint, tmp_path) == LlamaFileType.MOSTLY_Q5_0
