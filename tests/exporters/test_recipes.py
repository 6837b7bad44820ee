"""Every recipe of llama-quantize that there are grids for, from fused weights to files and back.

What `gguf` and `onnx` read of a file is compared with the fused checkpoint, bit for bit.
"""

import gguf as gguf_py
import numpy as np
import onnx as onnx_py
import pytest

from exporters import gguf, onnx
from exporters.gguf.file.header import read_header
from lrqat.checkpoint.reader import Checkpoint
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.errors import RecipeError
from lrqat.grids.grid import find_grid
from lrqat.models import fuse, hub, preparation, surgery
from lrqat.models.small_llama import make_untrained_model
from lrqat.recipes.llama_quantize import recipe_of
from lrqat.recipes.mixtures import MIXTURES
from lrqat.recipes.model_shape import ModelShape
from tests.support.ggml_decoders import NOT_IN_GGUF_PY, c_dequantize

HEADS = {"q_proj": 4, "k_proj": 2}
# Rows of 256 are whole blocks of every type; those of 320, in down_proj, fit no block of 256.
SIZES = {"hidden": 256, "intermediate": 320, "heads": 4, "kv_heads": 2, "vocabulary": 512}
NUMBERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def find_recipe(name, shapes):
    shape = ModelShape.of(NUMBERS | {"model_type": "llama"}, shapes, tied=False)
    return recipe_of(name, shape)


def is_supported(name):
    """Whether there is a grid for all that a recipe gives a small Llama."""
    block = {f"self_attn.{each}_proj": (256, 256) for each in "qkvo"}
    block |= {"mlp.gate_proj": (320, 256), "mlp.up_proj": (320, 256), "mlp.down_proj": (256, 320)}
    shapes = {f"model.layers.{i}.{own}": shape for i in range(2) for own, shape in block.items()}
    try:
        find_recipe(name, shapes | {"model.embed_tokens": (512, 256), "lm_head": (512, 256)})
    except RecipeError:
        return False
    return True


SUPPORTED = [name for name in MIXTURES if is_supported(name)]
# In ONNX there are no minima, which Q2_K, Q4_K and Q5_K have, and Q4_1 and Q5_1.
IN_ONNX = ["Q3_K_S", "IQ4_XS", "IQ4_NL", "Q4_0", "Q5_0", "Q6_K", "Q8_0", "MXFP4_MOE"]


@pytest.fixture(scope="module")
def make(tiny_model, tmp_path_factory):
    """Function of a recipe's name -> checkpoint of a Llama that is rounded to nearest."""
    made = {}
    tokenizer = hub.load_tokenizer(tiny_model)

    def fused(name):
        if name not in made:
            model = make_untrained_model(**SIZES, layers=2, seed=3)
            shapes = surgery.weight_shapes(model)
            plan = surgery.plan_surgery(model, "q4_0", recipe=find_recipe(name, shapes))
            preparation.prepare(
                model, plan, preparation.Settings(method="rtn", range_init="minmax")
            )
            base = {"name": "small", "revision": None, "dtype": "float32"}
            folder = tmp_path_factory.mktemp("recipe") / name
            fuse.fuse(model, tokenizer, folder, plan=plan, base_model=base)
            made[name] = Checkpoint.open(folder)
        return made[name]

    return fused


def gguf_weights(path):
    """Name -> what `gguf` reads; of a type that it does not know what llama.cpp's C makes of it."""
    found = {}
    for name, info in read_header(path).tensors.items():
        octets = np.fromfile(path, np.uint8, info.nbytes, offset=info.start)
        rows = octets.reshape(*info.shape[:-1], -1)
        kind = info.type_name.lower()
        if kind in NOT_IN_GGUF_PY:
            found[name] = c_dequantize(kind, rows)
        else:
            found[name] = gguf_py.dequantize(rows, gguf_py.GGMLQuantizationType[info.type_name])
    return found


def in_file_order(module, weight):
    """The rows as llama.cpp has them: both halves of a rotated head take turns."""
    heads = HEADS.get(module.rpartition(".")[2])
    if heads is None:
        return weight
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def test_the_recipes_are_most_of_llama_quantizes():
    others = set(MIXTURES) - set(SUPPORTED)
    assert all(name.startswith(("IQ1", "IQ2", "IQ3")) for name in others)
    assert len(SUPPORTED) == 21


@pytest.mark.parametrize("name", SUPPORTED)
def test_gguf_holds_the_fused_weights_of_every_recipe(name, make, tmp_path):
    checkpoint = make(name)
    assert len(checkpoint.quantized_names) == 16
    path = tmp_path / "model.gguf"
    gguf.write(gguf.plan(checkpoint), path)
    stored = gguf_weights(path)
    names = gguf_py.get_tensor_name_map(gguf_py.MODEL_ARCH.LLAMA, 2)
    for module in checkpoint.quantized_names:
        found = stored.pop(f"{names.get_name(module)}.weight")
        expected = in_file_order(module, checkpoint.quantized(module).dequantize())
        assert np.array_equal(found, expected), module
    assert all(values.dtype == np.float32 and values.ndim == 1 for values in stored.values())


@pytest.mark.parametrize("name", SUPPORTED)
def test_onnx_takes_every_recipe_without_minima(name, make):
    checkpoint = make(name)
    has_minima = any(find_grid(grid).minimum for grid in checkpoint.grids)
    assert bool(onnx.plan(checkpoint).refusals) == has_minima == (name not in IN_ONNX)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Q3_K_S", "IQ4_NL"])
def test_onnx_holds_the_fused_weights_of_a_recipe(name, make, tmp_path):
    checkpoint = make(name)
    onnx.write(onnx.plan(checkpoint), tmp_path / "onnx")
    graph = onnx_py.load(tmp_path / "onnx" / "model.onnx").graph
    stored = {t.name: onnx_py.numpy_helper.to_array(t) for t in graph.initializer}
    assert not any(onnx.verify(tmp_path / "onnx", checkpoint).values())
    for module in checkpoint.quantized_names:
        if checkpoint.kind(module) == WeightKind.EMBEDDING:  # packed in its operator's own way
            continue
        q, scale = (stored[f"{module}.weight{s}"].astype(np.float32) for s in ("", "_scale"))
        expected = checkpoint.quantized(module).dequantize()
        found = q * scale.repeat(len(q) // len(scale), 0)
        assert np.array_equal(found.T, expected), module
