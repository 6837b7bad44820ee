"""Streamed loading against from_pretrained, and its peak."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from benchmarks.memory_probe import TensorCounter
from lrqat.errors import ModelError
from lrqat.models import hub
from lrqat.models.preparation import Settings, prepare
from lrqat.models.small_llama import make_untrained_model
from lrqat.models.streaming import load_streamed
from lrqat.models.surgery import plan_surgery
from lrqat.models.weight_files import open_weights

SIZES = {"hidden": 64, "intermediate": 96, "layers": 2, "heads": 4, "kv_heads": 2, "seed": 0}


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    """Function (tied, sharded) -> folder of a tiny Llama."""

    def make(tied=False, sharded=False, vocabulary=300, **sizes):
        folder = tmp_path_factory.mktemp("streamed")
        model = make_untrained_model(vocabulary, tied=tied, **{**SIZES, **sizes})
        size = 60_000 if sharded else "5GB"
        model.save_pretrained(folder, max_shard_size=size)
        assert len(list(folder.glob("*.safetensors"))) > 3 * sharded
        return folder

    return make


def plan_of(folder, grid="int4-g32", **options):
    return plan_surgery(hub.meta_model(hub.load_config(str(folder))), grid, **options)


def streamed(folder, plan, settings=None, dtype=torch.float32, **options):
    torch.manual_seed(7)
    return load_streamed(str(folder), plan, settings or Settings(rank=4), dtype=dtype, **options)


def whole(folder, plan, settings=None, dtype=torch.float32):
    model = hub.load_model(str(folder), dtype=dtype)
    torch.manual_seed(7)
    return prepare(model, plan, settings or Settings(rank=4))


def state(model):
    """Parameters and all buffers, those that are not saved too."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return dict(named)


def assert_same(ours, theirs):
    ours_by_name, theirs_by_name = state(ours), state(theirs)
    assert ours_by_name.keys() == theirs_by_name.keys()
    for name, value in theirs_by_name.items():
        own = ours_by_name[name]
        assert (own.dtype, own.requires_grad) == (value.dtype, value.requires_grad), name
        assert torch.equal(own, value), name
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)
    assert not ours.training


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_it_equals_from_pretrained(save, tied, sharded):
    folder = save(tied=tied, sharded=sharded)
    plan = plan_of(folder)
    ours = streamed(folder, plan)
    assert_same(ours, whole(folder, plan))
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("phi", ["fp32", "int"])
def test_it_equals_from_pretrained_in_another_dtype(save, phi):
    folder = save(sharded=True)
    plan, settings = plan_of(folder, "q4_1"), Settings(rank=4, phi=phi)
    assert_same(
        streamed(folder, plan, settings, torch.bfloat16),
        whole(folder, plan, settings, torch.bfloat16),
    )


def test_a_tied_head_on_a_grid(save):
    folder = save(tied=True)
    plan = plan_of(folder, grid_for={"embed_tokens": "q8_0"})
    ours = streamed(folder, plan)
    assert_same(ours, whole(folder, plan))
    assert ours.lm_head is ours.model.embed_tokens.table


def test_biases_and_transposed_weights(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # biases begin at zero
    model.save_pretrained(tmp_path)
    plan = plan_of(tmp_path)
    assert_same(streamed(tmp_path, plan), whole(tmp_path, plan))


def test_of_tied_weights_the_file_may_hold_the_head(save):
    folder = save(tied=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    plan = plan_of(folder)
    expected = state(whole(folder, plan))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    ours = state(streamed(folder, plan))
    assert all(torch.equal(ours[name], value) for name, value in expected.items())


def test_the_peak_is_the_prepared_model_and_one_weight(save):
    folder = save(sharded=True, vocabulary=1000, hidden=256, intermediate=512, layers=8)
    plan = plan_of(folder, "int4-channel")
    settings = Settings(rank=4, phi="int", range_init="minmax")
    with TensorCounter() as counter:
        model = streamed(folder, plan, settings, torch.bfloat16)
    size = sum(
        t.untyped_storage().nbytes() for t in {id(t): t for t in state(model).values()}.values()
    )
    largest = 4 * max(p.numel() for p in (torch.empty(512, 256), torch.empty(1000, 256)))
    assert size > 1e6
    assert counter.peak < size + 6 * largest
    with TensorCounter() as loaded_whole:
        whole(folder, plan, settings, torch.bfloat16)
    assert counter.peak < 0.6 * loaded_whole.peak


def test_other_names_are_left_to_transformers(save, tmp_path):
    folder = save()
    plan = plan_of(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name.removeprefix("model."): value for name, value in tensors.items()},
        folder / "model.safetensors",
    )
    assert streamed(folder, plan) is None
    (folder / "model.safetensors").unlink()
    assert open_weights(folder, None) is None


def test_experts_that_are_merged_while_loading_are_left_to_transformers(tmp_path):
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
    MixtralForCausalLM(MixtralConfig(**sizes, **heads, num_local_experts=2)).save_pretrained(
        tmp_path
    )
    assert streamed(tmp_path, plan_of(tmp_path)) is None


def test_damaged_files_are_named(save):
    folder = save(sharded=True)
    plan = plan_of(folder)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    intact = shard.read_bytes()
    for damaged in (intact[:-10], intact[:20], b"", b"\xff" * 100):
        shard.write_bytes(damaged)
        with pytest.raises(ModelError, match=shard.name):
            streamed(folder, plan)
    shard.unlink()
    with pytest.raises(ModelError, match=shard.name):
        streamed(folder, plan)


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": 3}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "../a.safetensors"}}',
        '{"weight_map": {"a": "no_such.safetensors"}}',
        "[" * 100_000,
    ],
)
def test_damaged_indices_are_named(save, index):
    folder = save(sharded=True)
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"index\.json|no_such"):
        open_weights(folder, None)


def test_an_index_that_names_the_wrong_shard(save):
    folder = save(sharded=True)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    one, other = sorted(set(index["weight_map"].values()))[:2]
    name = next(n for n, file in index["weight_map"].items() if file == one)
    index["weight_map"][name] = other
    path.write_text(json.dumps(index))
    with pytest.raises(ModelError, match=f"{other}.*{name}"):
        open_weights(folder, None)


def test_another_shape_is_refused(save):
    folder = save()
    plan = plan_of(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.norm\.weight has shape \(3,\)"):
        streamed(folder, plan)


def test_nan_weights_are_refused(save):
    folder = save()
    plan = plan_of(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
        streamed(folder, plan)


def test_no_connection_is_said():
    with pytest.raises(ModelError, match="cannot"):
        open_weights("lrqat-tests/no-such-model", None)
