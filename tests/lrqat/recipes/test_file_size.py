"""Sizes of tensors are those of ggml, and the nearest recipe is the nearest."""

import dataclasses

import pytest

from exporters import gguf
from exporters.gguf.file.header import read_header
from exporters.gguf.layout.ggml_types import TYPES
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import RecipeError
from lrqat.recipes.file_size import Nearest, data_bytes, nearest_recipe, tensor_bytes
from lrqat.recipes.llama_quantize import choose_types
from lrqat.recipes.mixtures import FALLBACKS, MIXTURES
from tests.support.gguf_shells import decoder

LLAMA = decoder(layers=16, heads=8, kv_heads=4, hidden=256, inner=512)
CHOSEN = {kind for name in MIXTURES for kind in choose_types(name, LLAMA).values()}


@pytest.mark.parametrize("kind", sorted({*CHOSEN, *FALLBACKS, "F32", "F16", "BF16", "IQ4_XS"}))
def test_rows_have_the_bytes_of_ggml(kind):
    ggml = next(t for t in TYPES.values() if t.name == kind)
    width = 3 * max(ggml.weights, 32)
    assert tensor_bytes((2, 5, width), kind) == 10 * ggml.blocks(width) * ggml.nbytes


def test_a_file_is_its_header_and_its_tensors(fused_checkpoint, tmp_path):
    path = tmp_path / "a.gguf"
    gguf.write(gguf.plan(Checkpoint.open(fused_checkpoint)), path)
    tensors = read_header(path).tensors
    kinds = {name: info.type_name for name, info in tensors.items()}
    shapes = {name: info.shape for name, info in tensors.items()}
    assert {"Q4_0", "F32"} <= {*kinds.values()}
    begin = min(info.start for info in tensors.values())
    assert path.stat().st_size == begin + data_bytes(kinds, shapes)


def test_gate_and_up_of_experts_are_padded_each():
    shapes = {"mlp.experts.gate_up_proj": (1, 2, 32), "mlp.experts.down_proj": (1, 2, 32)}
    kinds = dict.fromkeys(shapes, "q4_0")
    assert data_bytes(kinds, shapes) == 2 * 32 + 64
    assert data_bytes(dict.fromkeys(shapes, "none"), shapes) == 2 * 64 + 128


@pytest.mark.parametrize(("kind", "width"), [("q4_k", 320), ("int4-g128", 256), ("iq3_s", 64)])
def test_what_has_no_size_is_refused(kind, width):
    with pytest.raises(RecipeError, match=f"rows of {width} weights have no size in '{kind}'"):
        tensor_bytes((1, width), kind)


def test_the_nearest_recipe_is_the_nearest():
    sizes = {name: data_bytes(choose_types(name, LLAMA), LLAMA.shapes) for name in MIXTURES}
    assert nearest_recipe(sizes["IQ3_S"] - 1, LLAMA) == Nearest("IQ3_S", sizes["IQ3_S"])
    assert nearest_recipe(sizes["Q5_K_M"] + 1000, LLAMA) == Nearest("Q5_K_M", sizes["Q5_K_M"])
    assert nearest_recipe(0, LLAMA).name == "IQ1_S"
    assert nearest_recipe(10**9, dataclasses.replace(LLAMA, tied=True)).name == "Q8_0"
