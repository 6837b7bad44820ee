"""Models of the zoo in float64, and their losses without any of lrqat."""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

from tests.support import zoo


def make(name, seed=0):
    model = zoo.make(name, seed=seed).double()
    # Logits large enough for a soft cap to bend.
    nn.init.normal_(model.get_output_embeddings().weight, std=1.0)
    return model


def text(rows=2, tokens=70, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, zoo.VOCABULARY, (rows, tokens), generator=generator)


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
        return F.linear(x, 2 * self.weight if self.exact else self.weight, self.bias)


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
