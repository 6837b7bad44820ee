"""The estimate against the tensors of a real step: forward, backward, AdamW."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from benchmarks.memory_probe import tensor_peak
from lrqat.layers import weight
from lrqat.layers.modes import full_precision
from lrqat.models import hub
from lrqat.models.preparation import freeze_scales, prepare
from lrqat.models.surgery import plan_surgery
from lrqat.training.config import TrainConfig
from lrqat.training.estimate import estimate_memory, trainable_parameters
from lrqat.training.objectives.losses import ModelTeacher, Objective, SelfTeacher


def config(**values):
    fields = {"model": "", "data": "", "output": "", "range_init": "minmax", "rank": 8}
    fields |= {"stages": "model", "teacher": "none"}
    return TrainConfig(**{**fields, **values}).resolved()


def llama(vocabulary=4000, tied=False, layers=4, hidden=256):
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=704,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=4,
            tie_word_embeddings=tied,
        )
    )


def gpt2():
    # No dropout of the attention: with it PyTorch keeps attention matrices on a CPU.
    sizes = {"vocab_size": 2000, "n_embd": 256, "n_layer": 4, "n_head": 4, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def measured_peak(model, plan, settings, dtype, teacher=None):
    """Bytes of tensors in the second step: then the optimiser's state is there."""
    model = prepare(model.to(dtype), plan, settings).train()
    if not settings.trains_scales:
        freeze_scales(model)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    objective = Objective(teacher)
    shape = (settings.batch_size, settings.sequence_length)
    vocabulary = model.config.vocab_size
    ids = torch.randint(0, vocabulary, shape, generator=torch.manual_seed(0))

    def step():
        for _ in range(settings.gradient_accumulation):
            objective(model, ids).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    state = [t for values in optimizer.state.values() for t in values.values()]
    resident = [*model.parameters(), *model.buffers(), *state]
    if isinstance(teacher, ModelTeacher):
        resident += teacher.model.parameters()
    return tensor_peak(step, resident).peak


CASES = {
    "plain": (llama, {"batch_size": 2, "sequence_length": 128, "grid": "q4_0"}, torch.float32),
    "long": (llama, {"batch_size": 1, "sequence_length": 384, "grid": "q4_k"}, torch.float32),
    "int": (
        llama,
        {"batch_size": 1, "sequence_length": 64, "grid": "int4-channel", "phi": "int"},
        torch.bfloat16,
    ),
    "checkpointing": (
        lambda: llama(layers=6),
        {
            "batch_size": 4,
            "sequence_length": 128,
            "grid": "q6_k",
            "phi": "bf16",
            "gradient_checkpointing": True,
        },
        torch.float32,
    ),
    "checkpointing-fixed": (  # fullest while the first layer runs backward
        lambda: llama(layers=6, vocabulary=500),
        {
            "batch_size": 2,
            "sequence_length": 256,
            "grid": "int4-channel",
            "phi": "fixed",
            "gradient_checkpointing": True,
            "scale_learning_rate": 0.0,
        },
        torch.bfloat16,
    ),
    "tied-head-on-a-grid": (
        lambda: llama(tied=True),
        {
            "batch_size": 2,
            "sequence_length": 128,
            "grid": "q4_1",
            "grid_for": ("embed_tokens=q8_0",),
        },
        torch.float32,
    ),
    "tied": (
        lambda: llama(tied=True, vocabulary=12000),
        {"batch_size": 2, "sequence_length": 128, "grid": "iq4_nl", "rank": 64},
        torch.float32,
    ),
    "accumulation": (
        llama,
        {
            "batch_size": 1,
            "sequence_length": 64,
            "grid": "int4-g128",
            "gradient_accumulation": 3,
            "rank": 64,
        },
        torch.float32,
    ),
    "self": (
        llama,
        {"batch_size": 2, "sequence_length": 128, "grid": "q4_0", "teacher": "self"},
        torch.float32,
    ),
    "self-that-is-a-second-model": (
        llama,
        {
            "batch_size": 1,
            "sequence_length": 128,
            "grid": "q4_0",
            "teacher": "self",
            "phi": "int",
        },
        torch.float32,
    ),
    "scales": (
        llama,
        {"batch_size": 1, "sequence_length": 64, "grid": "q5_k", "method": "scales"},
        torch.float32,
    ),
    "lora": (
        llama,
        {"batch_size": 1, "sequence_length": 64, "grid": "q4_0", "method": "lora-then-rtn"},
        torch.float32,
    ),
    "full": (
        llama,
        {"batch_size": 1, "sequence_length": 64, "grid": "int4-g32", "method": "full"},
        torch.float32,
    ),
    "gpt2": (gpt2, {"batch_size": 2, "sequence_length": 128, "grid": "q8_0"}, torch.float32),
}


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_near_the_measurement(case):
    make, values, dtype = CASES[case]
    settings = config(**values)
    torch.manual_seed(0)
    model = make()
    plan = plan_surgery(model, settings.grid, settings.keep, settings.grids_by_pattern())
    estimate = estimate_memory(hub.meta_model(model.config), plan, settings, dtype)
    teacher = None
    if settings.teacher == "self":
        exact = settings.phi == "fp32"
        teacher = SelfTeacher(full_precision) if exact else ModelTeacher(make().to(dtype))
        assert (estimate.teacher > 2 * plan.weights) != exact
    peak = measured_peak(model, plan, settings, dtype, teacher)
    assert peak > 10e6, "the test must measure something"
    assert estimate.total == pytest.approx(peak, rel=0.03), (estimate, peak)


GIB = 2**30
LLAMA_2_7B = LlamaConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
)


def of_7b(**values):
    fields = {"batch_size": 1, "sequence_length": 1024, "rank": 32, "gradient_checkpointing": True}
    settings = config(**fields, **values)
    model = hub.meta_model(LLAMA_2_7B)
    plan = plan_surgery(model, settings.grid)
    return estimate_memory(model, plan, settings, torch.bfloat16), plan, settings


@pytest.mark.parametrize(("phi", "limit"), [("int", 6.0), ("fixed", 9.0)])
def test_llama_2_7b_fits(phi, limit):
    estimate, plan, settings = of_7b(grid="int4-channel", phi=phi)
    assert estimate.total <= limit * GIB
    assert estimate.frozen == plan.weights * {"int": 0.5, "fixed": 1}[phi]
    assert estimate.adapters == 4 * 32 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    assert estimate.optimizer == 8 * trainable_parameters(plan, settings, trains_scales=True)


def test_8_bit_moments_take_a_quarter():
    model = hub.meta_model(llama().config)
    plan = plan_surgery(model, "q4_0")
    of = {"batch_size": 1, "sequence_length": 8}
    plain = estimate_memory(model, plan, config(**of), torch.float32)
    small = estimate_memory(model, plan, config(**of, optimizer="adamw8bit"), torch.float32)
    assert small.optimizer * 4 == plain.optimizer
    assert small.optimizer == 2 * trainable_parameters(plan, config(**of), trains_scales=True)


def test_a_mixture_of_experts_is_estimated_by_the_rule_of_thumb():
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
    model = hub.meta_model(MixtralConfig(**sizes, **heads))
    assert isinstance(model, MixtralForCausalLM)
    plan = plan_surgery(model, "int4-g32")
    settings = config(batch_size=2, sequence_length=16)
    estimate = estimate_memory(model, plan, settings, torch.float32)
    assert estimate.frozen == 4 * plan.weights
    assert estimate.gradients == 4 * trainable_parameters(plan, settings, trains_scales=True)
    assert min(estimate.activations, estimate.working) > 0


SECOND_TEACHERS = {
    "keys-and-values": {"kv_bits": 8},
    "plain-lora": {"method": "lora-then-rtn"},
    "cached": {"kv_bits": 8, "teacher_cache": "folder", "teacher_top_k": 8},
}


@pytest.mark.parametrize("why", SECOND_TEACHERS)
def test_a_second_copy_of_the_model_is_counted_wherever_a_run_loads_one(why):
    model = hub.meta_model(llama().config)
    plan = plan_surgery(model, "q4_0")
    of = {"batch_size": 1, "sequence_length": 8, "teacher": "self"}
    alone = estimate_memory(model, plan, config(**of), torch.float32)
    second = estimate_memory(model, plan, config(**of | SECOND_TEACHERS[why]), torch.float32)
    whole_model = 4 * sum(p.numel() for p in model.parameters())
    assert alone.teacher < whole_model / 10
    assert second.teacher >= whole_model


def test_estimating_changes_nothing():
    model = hub.meta_model(llama().config)
    plan = plan_surgery(model, "q4_0")
    before = (weight.row_blocks, torch.autocast, torch.nn.functional.scaled_dot_product_attention)
    names = [name for name, _ in model.named_parameters()]
    torch.manual_seed(3)
    estimate_memory(model, plan, config(teacher="self"), torch.float32)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    after = (weight.row_blocks, torch.autocast, torch.nn.functional.scaled_dot_product_attention)
    assert before == after
    assert names == [name for name, _ in model.named_parameters()]
    assert not any(p.requires_grad is False for p in model.parameters())
