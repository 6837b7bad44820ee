"""A PEFT adapter, merged: as its formula says, as peft does, or refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrqat.checkpoint.reader import Checkpoint
from lrqat.cli import train
from lrqat.errors import ModelError, UserError
from lrqat.models import hub
from lrqat.models.adapter import Adapter
from lrqat.training.config import TrainConfig
from lrqat.training.loading import load_merged
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
    Adapter.open(tmp_path / "lora").merge(model)
    after = model.state_dict()
    for name, scale in zip((Q, DOWN), scales, strict=True):
        right = (before[f"{name}.weight"].float() + scale * deltas[name]).bfloat16()
        assert torch.equal(after.pop(f"{name}.weight"), right)
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}])
def test_what_peft_merges_is_the_same(tmp_path, settings):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False,
        **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = peft.get_peft_model(make("llama"), config)
    theirs.save_pretrained(tmp_path)
    ours = make("llama")
    Adapter.open(tmp_path).merge(ours)
    right = theirs.merge_and_unload().state_dict()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, right[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"use_dora": True}, "it has DoRA"),
        ({"bias": "all"}, "it has biases"),
        ({"modules_to_save": ["lm_head"]}, "it has whole modules"),
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
        "is no matrix of": tensors
        | {f"base_model.model.{Q}.lora_embedding_A": tensors[name].clone()},
        "is damaged": tensors | {name: tensors[name] * float("nan")},
        "holds no LoRA": {},
        "adapts model.layers.9": {n.replace("layers.0", "layers.9"): t for n, t in tensors.items()},
        r"with the shape \(64, 60\)": tensors | {name: tensors[name][:, :60].contiguous()},
    }
    for match, given in changed.items():
        save_file(given, file)
        with pytest.raises(ModelError, match=match):
            Adapter.open(tmp_path).merge(model)
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
        Adapter.open(tmp_path).merge(model)


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
    config = TrainConfig(model=str(tiny_model), adapter=str(tmp_path / "lora"), data="", output="")
    merged = load_merged(config, torch.float32).get_submodule(Q).weight
    plain = hub.load_model(str(tiny_model), dtype=torch.float32).get_submodule(Q).weight
    step = merged.abs().max() / 127
    assert (merged - torch.from_numpy(stored)).abs().max() < step
    assert (merged - plain).abs().max() > 10 * step


def test_it_is_found_by_the_plan_and_not_streamed(arguments, tmp_path):
    with pytest.raises(UserError, match="--streamed reads weights as they are stored"):
        train.main([*arguments, "--streamed"])
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(CONFIG | {"use_dora": True}))
    with pytest.raises(ModelError, match="it has DoRA"):
        train.main([*arguments, "--dry-run"])
