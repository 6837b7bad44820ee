"""The types that our recipes ask for, beside those that llama-quantize itself chooses.

Runs where LIBLLAMA names a library of llama.cpp that has `llama_model_quantize`; see
`benchmarks.llama_quantize`.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.llama_quantize import chosen_types, quantize_file
from exporters.gguf.file.header import read_header
from lrqat.demo.baseline import write_unquantized
from lrqat.models.small_llama import make_tokenizer
from lrqat.models.surgery import plan_surgery
from lrqat.recipes.llama_quantize import choose_types
from lrqat.recipes.mixtures import MIXTURES
from lrqat.recipes.model_shape import ModelShape
from tests.support.checkpoints import TEXT
from tests.support.gguf_shells import decoder, gguf_names, write_shell
from tests.support.zoo import CONFIGS, VOCABULARY, make_from

pytestmark = pytest.mark.skipif(
    not os.environ.get("LIBLLAMA"), reason="LIBLLAMA names no libllama with llama_model_quantize"
)
SIZES = {"layers": 17, "heads": 8, "kv_heads": 4, "hidden": 256, "inner": 512}
# name: (llama.cpp's architecture, the model)
MODELS = {
    "rows fit": ("llama", decoder(**SIZES)),
    "four heads share, tied": ("llama", decoder(**SIZES | {"kv_heads": 2, "tied": True})),
    "rows of 64": ("llama", decoder(**SIZES | {"hidden": 320, "inner": 832})),
    "rows of 64, tied": ("llama", decoder(**SIZES | {"hidden": 320, "tied": True})),
    "only down fits": ("llama", decoder(**SIZES | {"hidden": 576, "kv_heads": 1, "layers": 8})),
    "rows of no block": ("llama", decoder(**SIZES | {"hidden": 240, "inner": 512, "layers": 3})),
    "one layer": ("llama", decoder(**SIZES | {"layers": 1})),
    "SmolLM2 135M": ("llama", decoder(
        layers=30, heads=9, kv_heads=3, hidden=576, inner=1536, tied=True, vocabulary=49152)),
    "Llama 3 8B": ("llama", decoder(
        layers=32, heads=32, kv_heads=8, hidden=4096, inner=14336, vocabulary=128256)),
    "80 layers": ("llama", decoder(**SIZES | {"layers": 80, "kv_heads": 1})),
    "80 layers, two share": ("llama", decoder(**SIZES | {"layers": 80})),
    "80 layers, none share": ("llama", decoder(**SIZES | {"layers": 80, "kv_heads": 8})),
    "80 layers, 8 experts": ("llama", decoder(**SIZES | {"layers": 80, "experts": 8})),
    "Qwen 2 of 80 layers": ("qwen2", decoder(
        **SIZES | {"layers": 80, "kv_heads": 8, "model_type": "qwen2"})),
    "8 experts": ("llama", decoder(
        **SIZES | {"layers": 32, "experts": 8, "model_type": "mixtral"})),
    "8 experts, rows of 64": ("llama", decoder(
        **SIZES | {"experts": 8, "hidden": 320, "inner": 96, "model_type": "mixtral"})),
    "4 experts": ("qwen3moe", decoder(**SIZES | {"experts": 4, "model_type": "qwen3_moe"})),
    "128 experts": ("qwen3moe", decoder(**SIZES | {"experts": 128, "model_type": "qwen3_moe"})),
    "shared experts": ("qwen2moe", decoder(
        **SIZES | {"experts": 60, "shared": 768, "model_type": "qwen2_moe"})),
    "2 experts": ("llama", decoder(**SIZES | {"experts": 2, "model_type": "mixtral"})),
    "Gemma 2, tied": ("gemma2", decoder(**SIZES | {"tied": True, "model_type": "gemma2"})),
}  # fmt: skip


@pytest.mark.parametrize("imatrix", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("name", MODELS)
def test_every_weight_has_the_type_that_llama_quantize_gives_it(
    name: str, imatrix: bool, tmp_path: Path
) -> None:
    arch, model = MODELS[name]
    names = write_shell(model, tmp_path / "shell.gguf", arch)
    theirs = chosen_types(tmp_path / "shell.gguf", MIXTURES, imatrix=imatrix)
    differing = {}
    for recipe, found in theirs.items():
        assert len(found) == sum(map(len, names.values()))
        ours = choose_types(recipe, model, imatrix=imatrix)
        differing |= {
            (recipe, own): (ours[module], found[own])
            for module, all_of in names.items()
            for own in all_of
            if ours[module] != found[own]
        }
    assert not differing


WIDE = {
    "hidden_size": 256, "intermediate_size": 320, "num_hidden_layers": 3, "head_dim": 64,
    "moe_intermediate_size": 64,
}  # fmt: skip


def wide(name: str) -> Any:
    """A configuration of the zoo whose attention fits blocks of 256, and whose experts do not."""
    config = CONFIGS[name]()
    for key, value in WIDE.items():
        if hasattr(config, key):
            setattr(config, key, value)
    return config


def shape_of(model: Any) -> ModelShape:
    """What a recipe asks of a model."""
    plan = plan_surgery(model, "int4-channel", grid_for={"embed_tokens|wte": "q8_0"})
    shapes: dict[str, tuple[int, ...]] = {n: t.shape for n, t in plan.quantized.items()}
    tied = "lm_head" not in plan.kept
    shapes |= {} if tied else {"lm_head": tuple(model.lm_head.weight.shape)}
    return ModelShape.of(model.config.to_dict(), shapes, tied)


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("llama", "llama"), ("llama, tied", "llama"), ("qwen3_moe", "qwen3moe"), ("phi3", "phi3"),
        ("gpt2", "gpt2"),
    ],
)  # fmt: skip
def test_files_made_of_our_exports_have_the_types_of_our_recipes(
    name: str, arch: str, tmp_path: Path
) -> None:
    model = make_from(wide(name))
    source = tmp_path / "source.gguf"
    write_unquantized(model, make_tokenizer([TEXT], vocabulary=VOCABULARY), source)
    shape = shape_of(model)
    names = gguf_names(shape.shapes, arch, shape.layers)
    for recipe in ("Q4_K_M", "Q3_K_M", "Q2_K", "Q4_0", "MXFP4_MOE"):
        target = tmp_path / f"{recipe}.gguf"
        assert quantize_file(source, target, recipe) == target.stat().st_size
        theirs = {n: info.type_name for n, info in read_header(target).tensors.items()}
        ours = choose_types(recipe, shape)
        assert {own: ours[m] for m, of in names.items() for own in of} == {
            own: kind for own, kind in theirs.items() if kind != "F32"
        }
