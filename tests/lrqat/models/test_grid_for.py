"""Grids for single modules: what patterns reach, what they cannot, and what stays unquantized."""

import pytest
import torch
import transformers as hf

from lrqat.errors import UserError
from lrqat.models import hub
from lrqat.models.matrices import ROUTER, WHOLE_STACK
from lrqat.models.preparation import prepare
from lrqat.models.surgery import plan_surgery
from tests.support.trained import SETTINGS, logits, move, round_trip
from tests.support.zoo import HEAD_DIM, SIZES, make


def wide_llama(**changes):
    torch.manual_seed(0)
    sizes = SIZES | {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**sizes | changes)).eval()


def test_a_grid_for_every_part(tmp_path):
    model = wide_llama()
    grids = {"down_proj": "q6_k", "lm_head": "q6_k", "embed_tokens": "q8_0", "v_proj": "q4_k"}
    grids |= {"gate_proj": "int3-asym-g64", "up_proj": "iq4_nl"}
    plan = plan_surgery(model, "q4_0", keep=["o_proj"], grid_for=grids)
    named = {n.rpartition(".")[2]: t.grid.name for n, t in plan.quantized.items()}
    assert named == grids | {"q_proj": "q4_0", "k_proj": "q4_0"}
    move(prepare(model, plan, SETTINGS))
    checkpoint, reference = round_trip(model, plan, tmp_path)
    assert checkpoint.grids == set(named.values())
    assert "model.layers.0.self_attn.o_proj.weight" in checkpoint.floating_names
    assert torch.equal(logits(model), logits(reference))


def test_the_last_matching_pattern_counts():
    plan = plan_surgery(wide_llama(), "q4_0", grid_for={"proj": "q5_0", "down_proj": "q6_k"})
    assert plan.quantized["model.layers.0.mlp.down_proj"].grid.name == "q6_k"
    assert plan.quantized["model.layers.0.mlp.up_proj"].grid.name == "q5_0"


@pytest.mark.parametrize(
    ("name", "grid_for", "match"),
    [
        ("llama", {"no_such": "q8_0"}, "'no_such' matches no linear layer"),
        ("llama", {"down_proj": "q9_9"}, "unknown grid 'q9_9'"),
        ("qwen3", {"embed_tokens": "q8_0", "lm_head": "q6_k"}, "give one grid"),
        ("ctrl", {"lm_head": "q8_0"}, "adds a bias to its products"),
        ("qwen3_moe", {r"mlp\.gate$": "q8_0"}, r"stays unquantized \(router\)"),
    ],
)
def test_patterns_that_ask_for_the_impossible(name, grid_for, match):
    with pytest.raises(UserError, match=match):
        plan_surgery(make(name), "q4_0", grid_for=grid_for)


def test_routers_are_out_of_reach_of_patterns():
    plan = plan_surgery(make("qwen2_moe"), "q4_0", grid_for={"gate": "q8_0"})
    assert plan.kept["model.layers.0.mlp.gate"] == ROUTER
    assert plan.kept["model.layers.1.mlp.shared_expert_gate"] == ROUTER
    assert plan.quantized["model.layers.0.mlp.experts.gate_up_proj"].grid.name == "q8_0"


def test_stacks_that_cannot_be_indexed_stay_and_are_named():
    config = hf.GptOssConfig(
        **HEAD_DIM, num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"] * 2
    )
    plan = plan_surgery(hub.meta_model(config), "q4_0", grid_for={"proj": "q8_0"})
    assert plan.kept["model.layers.0.mlp.experts.gate_up_proj"] == WHOLE_STACK
    assert plan.kept["model.layers.0.mlp.experts.down_proj"] == WHOLE_STACK
    assert plan.kept["model.layers.0.mlp.router"] == ROUTER
    assert len(plan.quantized) == 2 * 4


def test_a_router_within_a_router_stays():
    sizes = {k: v for k, v in SIZES.items() if k != "num_attention_heads"}
    plan = plan_surgery(hub.meta_model(hf.JetMoeConfig(**sizes, kv_channels=16)), "q4_0")
    assert set(plan.quantized) == {f"model.layers.{i}.self_attention.kv_proj" for i in range(2)}
    assert plan.kept["model.layers.0.mlp.router.layer"] == ROUTER
    assert plan.kept["model.layers.0.mlp.input_linear.weight"] == WHOLE_STACK
