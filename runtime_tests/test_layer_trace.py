"""A fault in one layer is named after that layer, in every runtime; in an intact file none is."""

import json
import shutil

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers as hf
from gguf import GGUFReader

from exporters import gguf, onnx
from exporters.onnx.options import OPTIONS_KEY
from lrqat.errors import UserError
from lrqat.models.hidden_states import anatomy, torch_hidden_states
from lrqat.models.reference import load_reference
from lrqat.runtimes.layer_trace import FLOAT32_BOUND, HALF_BOUND, trace_layers
from tests.support.checkpoints import TEXT, fused
from tests.support.onnx_exports import write_onnx
from tests.support.zoo import IN_LLAMA_CPP, SIZES, VOCABULARY

F32 = gguf.Options(type="f32")
PLACES = ["embedding", "layer 0", "layer 1", "layer 2", "layer 3", "final norm"]


@pytest.fixture(scope="module")
def four_layers(tmp_path_factory):
    """Checkpoint of a Llama of four layers, its F32 twin, and its ONNX folder."""
    folder = tmp_path_factory.mktemp("four")
    config = hf.LlamaConfig(**SIZES | {"num_hidden_layers": 4})
    checkpoint = fused(config, folder / "fused", keep=(), grid_for={})
    gguf.write(gguf.plan(checkpoint, F32), folder / "twin.gguf")
    write_onnx(onnx.plan(checkpoint), folder / "onnx")
    return checkpoint, folder / "twin.gguf", folder / "onnx"


def traced(checkpoint, file, **options):
    """The one trace, which must show every layer."""
    (found,) = trace_layers(checkpoint.path, [str(file)], TEXT[:400], **options)
    layers = checkpoint.config.get("num_hidden_layers") or checkpoint.config["n_layer"]
    names = ["embedding", *(f"layer {i}" for i in range(layers)), "final norm"]
    assert [difference.place for difference in found.differences] == names
    return found


def swapped(rows):
    """Two rows of a matrix in each other's place."""
    rows[[3, 5]] = rows[[5, 3]]


def rolled(rows):
    """Every row in the next one's place."""
    rows[:] = np.roll(rows, 1, axis=0)


def scaled(weights):
    weights[7] *= 1.25


FAULTS = [
    ("token_embd.weight", "model.embed_tokens.weight", rolled, "embedding"),
    ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight", scaled, "layer 0"),
    ("blk.1.ffn_norm.weight", "model.layers.1.post_attention_layernorm.weight", scaled, "layer 1"),
    ("blk.2.attn_q.weight", "model.layers.2.self_attn.q_proj.weight", swapped, "layer 2"),
    ("blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight", swapped, "layer 3"),
    ("output_norm.weight", "model.norm.weight", scaled, "final norm"),
]
IDS = [place for *_, place in FAULTS]


@pytest.mark.parametrize(("name", "_", "change", "place"), FAULTS, ids=IDS)
def test_the_layer_that_is_wrong_in_a_gguf_file_is_named(
    name, _, change, place, four_layers, tmp_path
):
    checkpoint, twin, _ = four_layers
    wrong = shutil.copy(twin, tmp_path / "wrong.gguf")
    (tensor,) = (t for t in GGUFReader(wrong, "r+").tensors if t.name == name)
    change(tensor.data)
    tensor.data.flush()
    found = traced(checkpoint, wrong, float32=False)
    assert found.first == place
    assert found.verdict.startswith(f"first to leave PyTorch: {place} ")


@pytest.mark.parametrize(("_", "name", "change", "place"), FAULTS, ids=IDS)
def test_the_layer_that_is_wrong_in_an_onnx_folder_is_named(
    _, name, change, place, four_layers, tmp_path
):
    checkpoint, _, folder = four_layers
    wrong = shutil.copytree(folder, tmp_path / "wrong")
    model = ir.load(wrong / "model.onnx")
    value = model.graph.initializers[name]
    weights = value.const_value.numpy().copy()
    change(weights)
    value.const_value = ir.Tensor(weights, dtype=value.dtype, name=name)
    ir.save(model, wrong / "model.onnx")
    for in_float32 in (True, False):  # what L1 runs is the folder too, without its kernels
        assert traced(checkpoint, wrong, float32=in_float32).first == place


def test_an_intact_file_has_no_such_layer(four_layers):
    checkpoint, twin, folder = four_layers
    for file, in_float32 in ((twin, True), (twin, False), (folder, True), (folder, False)):
        found = traced(checkpoint, file, float32=in_float32)
        assert (found.first, found.bound) == (None, FLOAT32_BOUND)
        assert 0 < max(d.relative for d in found.differences) < FLOAT32_BOUND / 4


def test_where_llama_cpp_rounds_activations_no_layer_is_named(four_layers, tmp_path):
    checkpoint, _, _ = four_layers
    gguf.write(gguf.plan(checkpoint), tmp_path / "real.gguf")
    found = traced(checkpoint, tmp_path / "real.gguf", float32=False)
    assert (found.first, found.bound) == (None, None)
    assert found.differences[1].relative > 10 * FLOAT32_BOUND
    assert traced(checkpoint, tmp_path / "real.gguf").first is None


def test_where_onnx_runtime_rounds_activations_no_layer_is_named(four_layers, tmp_path):
    checkpoint, _, folder = four_layers
    other = shutil.copytree(folder, tmp_path / "onnx")
    model = ir.load(other / "model.onnx")
    options = json.loads(model.metadata_props[OPTIONS_KEY]) | {"accuracy_level": 4}
    model.metadata_props[OPTIONS_KEY] = json.dumps(options)
    ir.save(model, other / "model.onnx")
    found = traced(checkpoint, other, float32=False)
    assert (found.first, found.bound) == (None, None)
    assert found.differences[1].relative > 10 * FLOAT32_BOUND
    assert traced(checkpoint, other).bound == FLOAT32_BOUND


@pytest.mark.parametrize("name", [name for name in IN_LLAMA_CPP if "," not in name])
def test_every_architecture_is_seen_in_llama_cpp(name, tmp_path):
    checkpoint = fused(name, tmp_path / "fused")
    gguf.write(gguf.plan(checkpoint), tmp_path / "model.gguf")
    found = traced(checkpoint, tmp_path / "model.gguf")
    assert found.first is None
    assert found.bound == (HALF_BOUND if name.startswith(("gemma", "gpt2")) else FLOAT32_BOUND)


@pytest.mark.slow
def test_half_precision_has_a_bound_of_its_own(four_layers, tmp_path):
    checkpoint, _, _ = four_layers
    write_onnx(onnx.plan(checkpoint, onnx.Options(preset="webgpu")), tmp_path / "onnx")
    found = traced(checkpoint, tmp_path / "onnx")
    assert (found.first, found.bound) == (None, HALF_BOUND)
    assert max(d.relative for d in found.differences) > FLOAT32_BOUND


def test_a_file_that_no_runtime_runs_is_refused(four_layers):
    with pytest.raises(UserError, match=r"model\.bin is no exported file"):
        trace_layers(four_layers[0].path, ["model.bin"], TEXT[:400])


def test_the_reference_is_what_transformers_calls_hidden_states(four_layers):
    model = load_reference(four_layers[0])
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, 20)
    found = torch_hidden_states(model, tokens)
    assert list(found) == PLACES
    with torch.inference_mode():
        said = model(torch.from_numpy(tokens)[None], output_hidden_states=True).hidden_states
    # The last that transformers gives is behind the norm.
    for name, state in zip([*PLACES[:4], PLACES[5]], said, strict=True):
        assert np.array_equal(found[name], state[0].numpy())
    assert anatomy(model).layers == "model.layers"
    assert anatomy(model).heads == ("lm_head",)
