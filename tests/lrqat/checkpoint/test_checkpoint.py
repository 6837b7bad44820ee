import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from lrqat.checkpoint import manifest
from lrqat.checkpoint.reader import PACKED, Checkpoint
from lrqat.checkpoint.stored_scales import PARTS
from lrqat.errors import CheckpointError, ModelError
from lrqat.grids.grid import GRIDS
from lrqat.grids.quantize import dequantize
from lrqat.models import hub, preparation, surgery
from lrqat.models.fuse import fuse
from lrqat.models.reference import load_reference, torch_logits
from tests.support.grids import KINDS_OF_GRIDS
from tests.support.trained import SETTINGS, logits, move, round_trip
from tests.support.zoo import make


@pytest.fixture
def copy(fused_checkpoint, tmp_path):
    return shutil.copytree(fused_checkpoint, tmp_path / "copy")


def rewrite_tensor(folder, part, change):
    """Change a tensor and make the manifest agree, as a buggy or hostile writer would."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith(part))
    tensors[name] = change(tensors[name].copy())
    save_file(tensors, path, metadata={"format": "pt"})
    described = json.loads((folder / manifest.FILE_NAME).read_text())
    described["files"] = manifest.describe_files(folder, list(described["files"]))
    (folder / manifest.FILE_NAME).write_text(json.dumps(described))


def read_all(checkpoint):
    return [checkpoint.quantized(name) for name in checkpoint.quantized_names]


@pytest.mark.parametrize("grid", [g for g in KINDS_OF_GRIDS if GRIDS[g].symmetric])
def test_transformers_computes_the_same_logits(grid, make_fused):
    folder = make_fused(grid)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    ours = load_reference(Checkpoint.open(folder))
    tokens = np.arange(3, 120)
    assert np.array_equal(torch_logits(theirs)(tokens), torch_logits(ours)(tokens))


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("grid", ["q8_0", "q4_1", "int4-asym-g32"])
def test_transformers_loads_an_embedding_on_a_grid(name, grid, tmp_path):
    """Tied (Qwen3) or not; a head of its own is on a grid that compressed-tensors holds."""
    options = {"embedding_grid": grid} | ({"head_grid": "q8_0"} if name == "llama" else {})
    model = make(name)
    plan = surgery.plan_surgery(model, "q4_0", **options)
    model = move(preparation.prepare(model, plan, SETTINGS))
    checkpoint, reference = round_trip(model, plan, tmp_path)
    assert checkpoint.grid("model.embed_tokens").name == grid
    assert "model.embed_tokens.weight" not in checkpoint.floating_names
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint.path)
    assert torch.equal(logits(theirs), logits(reference))
    assert torch.equal(logits(theirs), logits(model))


@pytest.mark.parametrize("grid", KINDS_OF_GRIDS)
def test_what_is_read_is_what_was_trained(grid, tiny_model, tmp_path):
    model = hub.load_model(str(tiny_model), dtype=torch.float32)
    plan = surgery.plan_surgery(model, grid, keep=["layers.0.mlp.up_proj"])
    preparation.prepare(model, plan, preparation.Settings(rank=4))
    for _, layer in preparation.quantized_layers(model):
        torch.nn.init.normal_(layer.lora_a)
    base = {"name": "tiny", "revision": None, "dtype": "float32"}
    tokens = np.arange(3, 90)
    trained = torch_logits(model)(tokens)
    fuse(model, hub.load_tokenizer(tiny_model), tmp_path / "out", plan=plan, base_model=base)

    checkpoint = Checkpoint.open(tmp_path / "out")
    assert checkpoint.quantized_names == list(plan.quantized)
    assert checkpoint.manifest["kept"] == plan.kept
    assert "model.layers.0.mlp.up_proj.weight" in checkpoint.floating_names
    for name, layer in preparation.quantized_layers(model):
        tensor = checkpoint.quantized(name)
        assert np.array_equal(tensor.q, layer.integers().numpy())
        stored = layer.stored()
        assert np.array_equal(tensor.scale, stored.scale.detach().numpy())
        expected = dequantize(layer.integers(), stored).detach().numpy()
        assert np.array_equal(tensor.dequantize(), expected)
    assert np.array_equal(torch_logits(load_reference(checkpoint))(tokens), trained)


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_truncated_file_is_named(copy, cut):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"model\.safetensors .*truncated or altered"):
        Checkpoint.open(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_one_flipped_bit_in_any_file_is_found(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name} does not match the sha256"):
        Checkpoint.open(copy)


def test_a_missing_file_is_named(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        Checkpoint.open(copy)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (np.nan, "not finite"),
        (np.inf, "not finite"),
        (0.0, "zero"),
        (1 / 3, "not exact in float16"),
    ],
)
def test_a_bad_scale_is_refused_with_its_place(copy, value, complaint):
    def change(scale):
        scale[1, 2] = value
        return scale

    rewrite_tensor(copy, PARTS["scale"], change)
    checkpoint = Checkpoint.open(copy)
    with pytest.raises(CheckpointError, match=f"{complaint}.*row 1, group 2"):
        read_all(checkpoint)


def test_a_negative_scale_is_refused_where_the_grid_has_none(make_fused, tmp_path):
    copy = shutil.copytree(make_fused("q8_0"), tmp_path / "copy")
    rewrite_tensor(copy, PARTS["scale"], lambda scale: -scale)
    checkpoint = Checkpoint.open(copy)
    with pytest.raises(CheckpointError, match="negative"):
        read_all(checkpoint)


def test_integers_outside_the_grid_are_refused(make_fused, tmp_path):
    copy = shutil.copytree(make_fused("q8_0"), tmp_path / "copy")
    rewrite_tensor(copy, PACKED, np.zeros_like)  # code 0 is -128, q8_0 starts at -127
    checkpoint = Checkpoint.open(copy)
    with pytest.raises(CheckpointError, match=r"-128\.\."):
        read_all(checkpoint)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": "x"}', "[" * 100_000, '{"format": "lrqat-checkpoint"}'],
    ids=["empty", "cut", "list", "foreign", "deep", "incomplete"],
)
def test_a_manifest_that_is_not_one_is_refused(copy, content):
    (copy / manifest.FILE_NAME).write_text(content)
    with pytest.raises(CheckpointError):
        Checkpoint.open(copy)


def test_a_kind_of_weight_that_there_is_not_is_refused(copy):
    path = copy / manifest.FILE_NAME
    described = json.loads(path.read_text())
    name = next(iter(described["tensors"]))
    described["tensors"][name]["kind"] = "convolution"
    path.write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=rf"{name} is a weight of kind 'convolution'"):
        Checkpoint.open(copy).kind(name)


def test_a_manifest_cannot_point_outside_its_folder(copy):
    described = json.loads((copy / manifest.FILE_NAME).read_text())
    described["files"]["../secret"] = {"sha256": "0" * 64, "bytes": 1}
    (copy / manifest.FILE_NAME).write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="not a file name"):
        Checkpoint.open(copy)


def test_nan_in_a_trained_tensor_is_never_written(tiny_model, tmp_path):
    model = hub.load_model(str(tiny_model), dtype=torch.float32)
    plan = surgery.plan_surgery(model, "q4_0")
    preparation.prepare(model, plan, preparation.Settings(rank=4))
    next(preparation.quantized_layers(model))[1].lora_a.data[0, 0] = torch.nan
    base = {"name": "tiny", "revision": None, "dtype": "float32"}
    with pytest.raises(ModelError, match="NaN"):
        fuse(model, hub.load_tokenizer(tiny_model), tmp_path / "out", plan=plan, base_model=base)
    assert not (tmp_path / "out").exists()


def test_tied_embeddings_are_stored_once_and_bf16_stays_bf16(text, tmp_path):
    from lrqat.models.small_llama import make_tokenizer, make_untrained_model

    tokenizer = make_tokenizer([text], vocabulary=300)
    model = make_untrained_model(
        300, hidden=64, intermediate=96, layers=1, heads=2, kv_heads=1, seed=0, tied=True
    )
    for parameter in model.parameters():  # values that bf16 holds, in float32
        parameter.data = parameter.data.bfloat16().float()
    plan = surgery.plan_surgery(model, "q4_0")
    preparation.prepare(model, plan, preparation.Settings(rank=4))
    base = {"name": "tied", "revision": None, "dtype": "bfloat16"}
    fuse(model, tokenizer, tmp_path / "out", plan=plan, base_model=base)
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert "lm_head.weight" not in checkpoint.floating_names
    assert checkpoint.floating_dtype("model.embed_tokens.weight") == "BF16"
    tokens = np.arange(3, 60)
    logits = torch_logits(load_reference(checkpoint))(tokens)
    assert np.array_equal(logits, torch_logits(model)(tokens))
