"""A PEFT adapter, merged: as its formula says, as peft does, or refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrqat.checkpoint.reader import Checkpoint
from lrqat.cli import train
from lrqat.errors import ModelError, UserError
from lrqat.models import hub
from lrqat.models.adapters.adapter import Adapter
from lrqat.models.adapters.merging import Adapters
from lrqat.training.base_model import load_merged
from lrqat.training.config import TrainConfig
from tests.support.zoo import make

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
CONFIG = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_rslora": False,
    "rank_pattern": {}, "alpha_pattern": {}, "target_modules": ["q_proj", "down_proj"],
}  # fmt: skip


def save(folder, model, modules=(Q, DOWN), ranks=None, **changes):
    """What peft saves, with random A and B; the deltas without their scale."""
    generator, tensors, deltas = torch.Generator().manual_seed(0), {}, {}
    for name in modules:
        out, columns = model.get_submodule(name).weight.shape
        rank = (ranks or {}).get(name, 4)
        a = torch.randn(rank, columns, generator=generator)
        b = torch.randn(out, rank, generator=generator)
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
        deltas[name] = b @ a
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    return deltas


@pytest.mark.parametrize(
    ("changes", "ranks", "scales"),
    [
        ({}, None, (2, 2)),
        ({"use_rslora": True}, None, (4, 4)),
        (
            {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"layers.0.self_attn.q_proj": 3}},
            {DOWN: 2},
            (0.75, 4),
        ),
    ],
)
def test_the_product_is_added_in_float32(tmp_path, changes, ranks, scales):
    model = make("llama").bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    deltas = save(tmp_path / "lora", model, ranks=ranks, **changes)
    merge(model, tmp_path / "lora")
    after = model.state_dict()
    for name, scale in zip((Q, DOWN), scales, strict=True):
        right = (before[f"{name}.weight"].float() + scale * deltas[name]).bfloat16()
        assert torch.equal(after.pop(f"{name}.weight"), right)
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


DORA, WHOLE = {"use_dora": True}, {"modules_to_save": ["lm_head", "embed_tokens", "norm"]}


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}, DORA, WHOLE, DORA | WHOLE],
)
def test_what_peft_merges_is_the_same(tmp_path, settings):
    theirs = trained_by_peft("llama", tmp_path, **settings)
    ours = make("llama")
    merge(ours, tmp_path)
    assert_same(ours, theirs.merge_and_unload())


def test_an_embedding_of_more_tokens_resizes_the_model(tmp_path):
    base = make("llama")
    base.resize_token_embeddings(300, mean_resizing=False)
    theirs = trained_by_peft(base, tmp_path, modules_to_save=["embed_tokens", "lm_head"])
    skeleton = hub.meta_model(make("llama").config)
    Adapters.open((str(tmp_path),)).fit(skeleton)
    assert skeleton.config.vocab_size == 300
    assert skeleton.get_output_embeddings().weight.shape[0] == 300
    ours = make("llama")
    merge(ours, tmp_path)
    assert_same(ours, theirs.merge_and_unload())


def test_several_add_up_by_their_weights(tmp_path):
    theirs = trained_by_peft("llama", tmp_path / "one")
    trained_by_peft("llama", tmp_path / "two", seed=1, use_rslora=True)
    theirs.load_adapter(tmp_path / "two", "two")
    theirs.add_weighted_adapter(["default", "two"], [0.5, 2.0], "sum", combination_type="cat")
    theirs.set_adapter("sum")
    ours = make("llama")
    merge(ours, f"{tmp_path / 'one'}:0.5", f"{tmp_path / 'two'}:2")
    assert_same(ours, theirs.merge_and_unload(), atol=1e-5)


def test_what_is_no_sum_stands_alone(tmp_path):
    trained_by_peft("llama", tmp_path / "dora", use_dora=True)
    trained_by_peft("llama", tmp_path / "plain")
    for given in ((f"{tmp_path / 'dora'}:0.5",), (tmp_path / "dora", tmp_path / "plain")):
        with pytest.raises(ModelError, match="only alone, and with the weight 1"):
            Adapters.open(tuple(map(str, given)))


def trained_by_peft(model, folder, seed=0, **settings):
    """A random adapter as peft makes and saves it; the model with it."""
    import peft

    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False,
        **settings,
    )  # fmt: skip
    torch.manual_seed(seed)
    made = peft.get_peft_model(make(model) if isinstance(model, str) else model, config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "magnitude" in name or "modules_to_save" in name:
                parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
    made.save_pretrained(folder)
    return made


def merge(model, *given):
    Adapters.open(tuple(map(str, given))).merge(model)


def assert_same(ours, theirs, atol=1e-6):
    right = theirs.state_dict()
    assert ours.state_dict().keys() == right.keys()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, right[name], rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"bias": "all"}, "it has biases"),
        ({"init_lora_weights": "pissa_niter_4"}, "a start that changed the base model"),
        ({"peft_type": "IA3"}, "a 'IA3' adapter"),
        ({"fan_in_fan_out": True}, "stored transposed"),
        ({"r": 8}, "says rank 8 .* whose matrices have rank 4"),
        ({"lora_alpha": None}, "alpha None"),
        ({"alpha_pattern": {"(a+)+$": 3}}, "is an expression and no name"),
    ],
)
def test_what_is_more_than_a_sum_is_refused(tmp_path, changes, match):
    save(tmp_path, make("llama"), **changes)
    with pytest.raises(ModelError, match=match):
        Adapter.open(tmp_path)


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    model = make("llama")
    save(tmp_path, model)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = f"base_model.model.{Q}.lora_A.weight"
    changed = {
        "no A and B": {n: t for n, t in tensors.items() if n != name},
        "is no part of": tensors
        | {f"base_model.model.{Q}.lora_embedding_A": tensors[name].clone()},
        "is damaged": tensors | {name: tensors[name] * float("nan")},
        "holds no LoRA": {},
        "adapts model.layers.9": {n.replace("layers.0", "layers.9"): t for n, t in tensors.items()},
        r"with the shape \(64, 60\)": tensors | {name: tensors[name][:, :60].contiguous()},
    }
    for match, given in changed.items():
        save_file(given, file)
        with pytest.raises(ModelError, match=match):
            merge(model, tmp_path)
    file.write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="is damaged"):
        Adapter.open(tmp_path)
    file.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ModelError, match="is a pickle, which is not opened"):
        Adapter.open(tmp_path)
    with pytest.raises(ModelError, match=r"has no adapter_config\.json"):
        Adapter.open(tmp_path / "none")


def test_the_table_of_a_tied_head_is_not_adapted(tmp_path):
    model = make("llama, tied")
    save(tmp_path, model, modules=("lm_head",))
    with pytest.raises(ModelError, match="adapts lm_head, which is the embedding"):
        merge(model, tmp_path)


@pytest.fixture
def arguments(tiny_model, text_file, tmp_path):
    model = hub.load_model(str(tiny_model), dtype=torch.float32)
    save(tmp_path / "lora", model, modules=(Q,))
    settings = "--grid q8_0 --method rtn --steps 1 --context 64 --eval-windows 2 --batch-size 1"
    given = ["--model", tiny_model, "--data", text_file, "--output", tmp_path / "out"]
    given += ["--adapter", tmp_path / "lora"]
    return [*map(str, given), *settings.split(), "--sequence-length", "64"]


def test_a_run_starts_from_the_merged_model(arguments, tmp_path, tiny_model):
    assert train.main(arguments) == 0
    recorded = json.loads((tmp_path / "out" / "lrqat.json").read_text())
    assert recorded["base_model"]["adapter"] == "lora"
    stored = Checkpoint.open(tmp_path / "out").quantized(Q).dequantize()
    config = TrainConfig(
        model=str(tiny_model), adapter=(str(tmp_path / "lora"),), data="", output=""
    )
    merged = load_merged(config, torch.float32).get_submodule(Q).weight
    plain = hub.load_model(str(tiny_model), dtype=torch.float32).get_submodule(Q).weight
    step = merged.abs().max() / 127
    assert (merged - torch.from_numpy(stored)).abs().max() < step
    assert (merged - plain).abs().max() > 10 * step


def test_it_is_found_by_the_plan_and_not_streamed(arguments, tmp_path):
    with pytest.raises(UserError, match="--streamed reads weights as they are stored"):
        train.main([*arguments, "--streamed"])
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(CONFIG | {"bias": "all"}))
    with pytest.raises(ModelError, match="it has biases"):
        train.main([*arguments, "--dry-run"])
