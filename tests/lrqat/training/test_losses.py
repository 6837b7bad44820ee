"""The chunked losses against plain torch on whole logits, on real architectures."""

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lrqat.errors import UserError
from lrqat.training.objectives import chunks
from lrqat.training.objectives.chunks import chunked_loss
from lrqat.training.objectives.losses import CachedTeacher, ModelTeacher, Objective, SelfTeacher
from tests.support.whole_losses import (
    Switched,
    assert_same,
    full_precision,
    gradients,
    make,
    text,
    whole_loss,
)
from tests.support.zoo import SIZES, VOCABULARY

CAPPED = "gemma2, low caps"


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 64 tokens, so that 140 positions make two whole ones and a part of one."""
    monkeypatch.setattr(chunks, "_CHUNK_BYTES", 1)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["llama", CAPPED, "llama, tied"])
def test_distillation_and_the_mix_are_the_whole_ones(name, weight, small_chunks):
    model, other, input_ids = make(name), make(name, seed=1), text()
    with torch.no_grad():
        teacher_logits = other(input_ids=input_ids).logits
    chunked = Objective(ModelTeacher(other), weight)(model, input_ids)
    assert_same(model, chunked, whole_loss(model, input_ids, teacher_logits, weight))
    assert all(p.grad is None for p in other.parameters())


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_only_learned_tokens_count(weight, share, small_chunks):
    model, other, input_ids = make(CAPPED), make(CAPPED, seed=1), text()
    learned = torch.rand(input_ids.shape, generator=torch.Generator().manual_seed(2)) < share
    weights = F.pad(learned[:, 1:], (0, 1)).float() * 1.5  # 1.5: as if 2/3 of all were learned
    with torch.no_grad():
        teacher = other(input_ids=input_ids).logits
    student = model(input_ids=input_ids).logits
    labels = input_ids.masked_fill(~learned, -100)
    ce = F.cross_entropy(
        student[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    each = (teacher.softmax(-1) * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum(-1)
    kl = each[:, :-1][learned[:, 1:]].sum()
    whole = 1.5 * (weight * ce + (1 - weight) * kl) / input_ids.numel()
    chunked = Objective(ModelTeacher(other), weight)(model, input_ids, loss_weights=weights)
    assert_same(model, chunked, whole)


def test_weights_of_all_tokens_are_the_loss_without_weights():
    model, input_ids = make("llama"), text()
    tokens = input_ids.shape[1]
    weights = torch.full(input_ids.shape, tokens / (tokens - 1))
    weights[:, -1] = 0
    found = Objective()(model, input_ids, loss_weights=weights)
    torch.testing.assert_close(found, whole_loss(model, input_ids), rtol=1e-6, atol=0)


def test_a_frozen_head_gets_no_gradient_and_the_backbone_all_of_its(small_chunks):
    model, input_ids = make(CAPPED), text()
    model.get_output_embeddings().requires_grad_(False)
    assert_same(model, Objective()(model, input_ids), whole_loss(model, input_ids))


def test_a_frozen_backbone_still_trains_the_head(small_chunks):
    model, input_ids = make("llama"), text()
    model.base_model.requires_grad_(False)
    found = gradients(model, Objective()(model, input_ids))
    expected = gradients(model, whole_loss(model, input_ids))
    assert list(found) == ["lm_head.weight"]
    torch.testing.assert_close(found["lm_head.weight"], expected["lm_head.weight"])


def test_the_gradient_is_numerically_right():
    features = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = nn.Parameter(torch.randn(7, 4, dtype=torch.float64))

    def loss(features, weight):
        def loss_of(piece, positions):
            return torch.logsumexp(torch.tanh(piece @ weight.T), -1).sum()

        return chunked_loss(loss_of, features, [weight], 7)

    assert torch.autograd.gradcheck(loss, (features, weight))


def test_micro_batches_accumulate_to_the_gradient_of_the_whole_batch(small_chunks):
    model, input_ids = make("llama"), text(rows=4)
    objective = Objective()
    expected = gradients(model, objective(model, input_ids))
    model.zero_grad()
    for part in input_ids.split(2):
        (objective(model, part) / 2).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_without_gradients_nothing_is_computed_for_backward():
    model, input_ids = make("llama"), text()
    with torch.no_grad():
        loss = Objective()(model, input_ids)
    assert loss.grad_fn is None
    torch.testing.assert_close(loss, whole_loss(model, input_ids).detach())


def test_half_precision_is_summed_in_float32():
    model, input_ids = make("llama").to(torch.bfloat16), text()
    loss = Objective()(model, input_ids)
    logits = model(input_ids=input_ids).logits.float()
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert model.lm_head.weight.grad.dtype == torch.bfloat16


def test_nothing_as_large_as_the_logits_is_kept_for_backward(small_chunks):
    model, input_ids = make(CAPPED), text(rows=10, tokens=14)  # 140 positions, small attention
    teacher = ModelTeacher(make(CAPPED, seed=1))
    objective = Objective(teacher, 0.5)
    objective(model, input_ids)  # the trial of the split is over
    whole = input_ids.numel() * VOCABULARY

    def largest(loss):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            loss()
        return max(sizes)

    assert largest(lambda: whole_loss(model, input_ids)) >= whole  # the measure sees it
    # The hooks see the inner graphs of the chunks too, each gone before the next is made.
    assert largest(lambda: objective(model, input_ids)) <= 64 * VOCABULARY < whole


def test_a_chunk_is_bounded_in_bytes_and_from_below(monkeypatch):
    seen = []

    def loss_of(piece, positions):
        seen.append(positions.stop - positions.start)
        return piece.sum()

    chunked_loss(loss_of, torch.ones(5000, 1), [], 4_000)
    assert max(seen) * 4_000 * 4 <= 8 << 20 < (max(seen) + 1) * 4_000 * 4
    assert sum(seen) == 5000
    seen.clear()
    chunked_loss(loss_of, torch.ones(200, 1), [], 10_000_000)
    assert seen == [64, 64, 64, 8]


def test_the_models_own_full_precision_teaches_it(small_chunks):
    model, input_ids = make("granite"), text()
    doubled = copy.deepcopy(model)
    for layer in (m for m in doubled.modules() if isinstance(m, nn.Linear)):
        layer.weight.data.mul_(2)
    with torch.no_grad():
        teacher_logits = doubled(input_ids=input_ids).logits
    # The head is one of the layers: its original weights are needed in every chunk.
    chunked = Objective(SelfTeacher(full_precision), 0.25)(Switched.of(model), input_ids)
    assert_same(model, chunked, whole_loss(model, input_ids, teacher_logits, 0.25))


def test_a_teacher_without_gradients_does_not_cost_autocast_the_students(small_chunks):
    """Autocast keeps the weights it casts, and one cast under no_grad has no gradient."""
    model, input_ids = make("llama").float(), text()
    objective = Objective(SelfTeacher(lambda model: contextlib.nullcontext()), 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(model, input_ids)
    found = gradients(model, loss)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    assert all(gradient.abs().max() > 0 for gradient in found.values())


def test_dropout_is_off_for_the_teacher_and_on_for_the_student():
    model, input_ids = make("gpt2").train(), text()
    calls = []
    model.transformer.drop.register_forward_hook(lambda m, a, o: calls.append(m.training))
    objective = Objective(SelfTeacher(lambda model: contextlib.nullcontext()))
    objective(model, input_ids)
    calls.clear()
    assert objective(model, input_ids) > 0
    assert calls == [False, True]


def test_the_same_weights_have_nothing_to_distil():
    model, input_ids = make("llama"), text()
    loss = Objective(ModelTeacher(make("llama")))(model, input_ids)
    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_another_vocabulary_is_refused():
    other = LlamaForCausalLM(LlamaConfig(**SIZES | {"vocab_size": 301}))
    with pytest.raises(UserError, match="vocabulary of 301 and the model one of 288"):
        Objective(ModelTeacher(other))(make("llama"), text())


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(UserError, match=f"--cross-entropy-weight {weight} must be between"):
        Objective(None, weight)


def test_a_teacher_that_counts_for_nothing_is_not_run():
    class Unwanted:
        def targets(self, student, batch):
            raise AssertionError

    model, input_ids = make("llama"), text()
    loss = Objective(Unwanted(), 1.0)(model, input_ids)
    torch.testing.assert_close(loss, whole_loss(model, input_ids))


def test_cached_targets_train_like_the_teacher_itself(small_chunks):
    model, other, input_ids = make(CAPPED), make(CAPPED, seed=1), text()
    with torch.no_grad():
        logits = other(input_ids=input_ids).logits
    values, ids = logits.log_softmax(-1).topk(VOCABULARY)
    rows = {"teacher_logprobs": values, "teacher_ids": ids.int()}
    chunked = Objective(CachedTeacher(), 0.1)(model, input_ids, **rows)
    assert_same(model, chunked, whole_loss(model, input_ids, logits, 0.1))


class Step(nn.Module):
    """What a distributed wrapper goes around: forward gives the loss."""

    def __init__(self, model, objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, input_ids):
        return self.objective(self.model, input_ids)


@pytest.fixture
def process_group(tmp_path):
    distributed = torch.distributed
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


def sharded(step):
    for layer in step.model.model.layers:
        torch.distributed.fsdp.fully_shard(layer)
    return torch.distributed.fsdp.fully_shard(step)


@pytest.mark.parametrize("wrap", [nn.parallel.DistributedDataParallel, sharded])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_distributed_wrappers_get_the_same_gradients(
    wrap, checkpointing, process_group, small_chunks
):
    input_ids, grads = text(), []
    for wrapped in (lambda step: step, wrap):
        model = Switched.of(make(CAPPED)).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        step = wrapped(Step(model, Objective(SelfTeacher(full_precision), 0.3)))
        for _ in range(2):  # FSDP gathers anew, and the objective knows the split already
            model.zero_grad()
            step(input_ids).backward()
        found = {name: p.grad for name, p in model.named_parameters()}
        grads.append({n: g.full_tensor() if wrap is sharded and wrapped is wrap else g
                      for n, g in found.items()})  # fmt: skip
    for name, gradient in grads[0].items():
        torch.testing.assert_close(grads[1][name], gradient, msg=name)
