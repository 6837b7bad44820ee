import pytest
import torch

from lrqat.errors import GridError, ModelError, UserError
from lrqat.models import hub, preparation, surgery
from tests.support.paths import shared_model


def test_the_head_stays_and_every_projection_goes(tiny_model):
    model = hub.meta_model(hub.load_config(str(tiny_model)))
    plan = surgery.plan_surgery(model, "q4_0")
    assert plan.kept == {"lm_head": "output head"}
    assert len(plan.quantized) == 2 * 7
    assert plan.weights == sum(
        out * columns for out, columns in (t.shape for t in plan.quantized.values())
    )


def test_kept_modules_carry_the_reason(tiny_model):
    model = hub.meta_model(hub.load_config(str(tiny_model)))
    plan = surgery.plan_surgery(model, "q4_0", keep=[r"layers\.0\.", "down_proj"])
    assert plan.kept["model.layers.0.mlp.up_proj"] == r"matches --keep 'layers\\.0\\.'"
    assert plan.kept["model.layers.1.mlp.down_proj"] == "matches --keep 'down_proj'"
    assert "model.layers.1.mlp.up_proj" in plan.quantized


@pytest.mark.parametrize(
    ("grid", "keep", "error", "match"),
    [
        ("q4_0", ["no_such"], UserError, "matches no linear layer"),
        ("q4_0", ["("], UserError, "not a regular expression"),
        ("q4_0", ["proj"], UserError, "nothing is left"),
        ("nonsense", [], GridError, "known grids"),
    ],
)
def test_mistakes_are_named(tiny_model, grid, keep, error, match):
    model = hub.meta_model(hub.load_config(str(tiny_model)))
    with pytest.raises(error, match=match):
        surgery.plan_surgery(model, grid, keep)


def test_a_model_without_linear_layers_is_refused():
    class Bare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(8, 32)

    with pytest.raises(ModelError, match="no projections"):
        surgery.plan_surgery(Bare(), "q4_0")


def test_only_a_b_and_s_are_trained_and_the_weight_is_gone(tiny_model):
    model = hub.load_model(str(tiny_model), dtype=torch.bfloat16)
    settings = preparation.Settings(rank=4, phi="fixed")
    preparation.prepare(model, surgery.plan_surgery(model, "int4-g128"), settings)
    trained = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"lora_a", "lora_b", "scale"}
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert not any(name.endswith("proj.weight") for name in model.state_dict())


def test_nan_weights_are_refused(tiny_model):
    model = hub.load_model(str(tiny_model), dtype=torch.float32)
    model.model.layers[1].self_attn.q_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.q_proj\.weight"):
        preparation.prepare(model, surgery.plan_surgery(model, "q4_0"))


@pytest.mark.parametrize("path", [shared_model("stories260k")])
def test_rows_that_do_not_fit_are_kept_with_the_reason(path):
    model = hub.meta_model(hub.load_config(str(path)))
    plan = surgery.plan_surgery(model, "q4_0")
    misfits = {name: reason for name, reason in plan.kept.items() if "down_proj" in name}
    assert len(misfits) == 5
    assert all("172 inputs are not a multiple of the 32" in r for r in misfits.values())
    assert not any("down_proj" in name for name in surgery.plan_surgery(model, "int4-channel").kept)
