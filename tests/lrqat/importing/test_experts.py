"""Experts that a source holds one by one, and its model in one parameter for all of a layer."""

import pytest
import torch
import transformers as hf

from lrqat.checkpoint.reader import Checkpoint
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.errors import ModelError
from lrqat.importing.run import examine, import_model
from lrqat.models.reference import load_reference
from tests.support.imported import folder_of, state_of
from tests.support.quantized_sources import KINDS, experts_config, gptq, write

STACKS = ("gate_up_proj", "down_proj")


def stacked(wanted, layer, name):
    """The source's own dequantisation as the model's parameter: (experts, out, in)."""
    stem = f"model.layers.{layer}.mlp.experts"
    parts = ("gate_proj", "up_proj") if name == "gate_up_proj" else (name,)
    return torch.stack(
        [torch.cat([wanted[f"{stem}.{i}.{part}.weight"] for part in parts]) for i in range(4)]
    )


@pytest.mark.parametrize("name", ["GPTQ", "AWQ", "compressed-tensors", "weights, q4_0"])
def test_experts_one_by_one_are_the_stacks_of_the_model(name, tmp_path):
    kind = KINDS[name]
    folder, wanted = write(kind, tmp_path / "source", experts_config())
    report = import_model(str(folder), tmp_path / "out")
    checkpoint = Checkpoint.open(tmp_path / "out")
    by_name = {each.name: each for each in report.tensors}
    model = load_reference(checkpoint).to(kind.dtype)
    for layer in range(2):
        for own in STACKS:
            stack = f"model.layers.{layer}.mlp.experts.{own}"
            assert by_name[stack].is_exact
            assert by_name[stack].weights == stacked(wanted, layer, own).numel()
            assert checkpoint.grid(f"{stack}.3").name == kind.grid
            assert checkpoint.kind(f"{stack}.3") == WeightKind.EXPERTS
            assert torch.equal(model.get_parameter(stack), stacked(wanted, layer, own))


def test_a_stack_with_one_expert_on_no_grid_stays_as_it_is(tmp_path):
    odd = "model.layers.1.mlp.experts.2.up_proj.weight"
    values = {}

    def change(name, value):
        parts, meant = KINDS["weights, q4_0"].make(value)
        values[name] = value.bfloat16() if name == odd else meant
        return {"weight": values[name]} if name == odd else parts

    folder = folder_of(tmp_path / "source", change, experts_config())
    report = import_model(str(folder), tmp_path / "out")
    (left,) = [each for each in report.tensors if "experts" in each.name and not each.is_exact]
    assert (left.name, left.grid) == ("model.layers.1.mlp.experts.gate_up_proj", None)
    assert 0.8 < left.share < 1  # all but one half of one of four experts
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert left.name in checkpoint.floating_names
    whole = load_reference(checkpoint).get_parameter(left.name)
    assert torch.equal(whole.bfloat16(), stacked(values, 1, "gate_up_proj"))


def test_an_expert_that_is_missing_is_named(tmp_path):
    folder, _ = write(KINDS["GPTQ"], tmp_path / "source", experts_config())
    from safetensors.torch import save_file

    kept = {n: t for n, t in state_of(folder).items() if ".experts.3.down_proj" not in n}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"first 'model.layers.0.mlp.experts.down_proj'"):
        examine(str(folder))


def test_mixtral_has_other_names_in_its_files(tmp_path):
    config = hf.MixtralConfig(
        vocab_size=128, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    names = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    wanted = {}

    def change(name, value):
        parts, wanted[name] = gptq(4, 1, True).make(value)
        return parts

    folder = folder_of(tmp_path / "source", change, config, **gptq(4, 1, True).settings)
    from safetensors.torch import save_file

    state = {}
    for name, value in state_of(folder).items():
        stem, dot, rest = name.partition(".mlp.experts.")
        number, _, part = rest.partition(".")
        own, _, end = part.partition(".")
        old = f"{stem}.block_sparse_moe.experts.{number}.{names.get(own)}.{end}" if dot else name
        state[old.replace(".mlp.gate.", ".block_sparse_moe.gate.")] = value
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    import_model(str(folder), tmp_path / "out")
    model = load_reference(Checkpoint.open(tmp_path / "out")).half()
    for own in STACKS:
        stack = model.get_parameter(f"model.layers.0.mlp.experts.{own}")
        assert torch.equal(stack, stacked(wanted, 0, own))
