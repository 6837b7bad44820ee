"""Tiny models of real architectures in float64, and their losses without any of lrqat."""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def _falcon():
    sizes = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
    return FalconH1ForCausalLM(FalconH1Config(**SIZES, **sizes, lm_head_multiplier=0.3))


MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=3.0)
    ),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2)
    ),
    "falcon_h1": _falcon,
}


def make(name, seed=0):
    torch.manual_seed(seed)
    model = MODELS[name]().double().eval()
    head = model.get_output_embeddings()
    nn.init.normal_(head.weight, std=1.0)  # logits large enough for a soft cap to bend
    return model


def text(rows=2, tokens=70, seed=0):
    return torch.randint(1, VOCABULARY, (rows, tokens), generator=torch.manual_seed(seed))


def whole_loss(model, input_ids, teacher_logits=None, weight=1.0):
    """The formulae of the docstring, on whole logits, written with nothing of lrqat."""
    logits = model(input_ids=input_ids).logits
    loss = weight * F.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
    if teacher_logits is not None:
        p = teacher_logits.softmax(-1)
        divergence = (p * (teacher_logits.log_softmax(-1) - logits.log_softmax(-1))).sum(-1)
        loss = loss + (1 - weight) * divergence.mean()
    return loss


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model, chunked, whole):
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-12)
    ours, theirs = gradients(model, 3 * chunked), gradients(model, 3 * whole)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        # Gradients of a trained head are summed in the wider of its own dtype and float32.
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


class Switched(nn.Linear):
    """A stand-in for a prepared layer: while `exact`, it computes with twice its weight."""

    exact = False

    @classmethod
    def of(cls, model):
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = cls
        return model

    def forward(self, x):
        return F.linear(x, 2 * self.weight if self.exact else self.weight)


@contextlib.contextmanager
def full_precision(model):
    switched = [m for m in model.modules() if isinstance(m, Switched)]
    for module in switched:
        module.exact = True
    try:
        yield
    finally:
        for module in switched:
            module.exact = False
