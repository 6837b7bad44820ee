"""A causal LM in two halves, so that logits of the whole vocabulary need never exist at once.

    features = backbone(input_ids)              (batch, tokens, hidden)
    logits   = after(head(features))            (..., vocabulary), for as few tokens as one likes

`after` is what some architectures do to the logits, see `lrqat.architectures.LOGIT_STEPS`. Nobody
keeps a list of the models that are built this way, so `split` tries it on a few tokens and compares
with the model's own logits. A model that differs is not split: its features are its logits, and its
head does nothing.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrqat.architectures import LOGIT_STEPS, LogitStep
from lrqat.layers.linear import LRQATLinear
from lrqat.layers.modes import evaluating

_STEPS: dict[LogitStep, Callable[[Tensor, float], Tensor]] = {
    LogitStep.SOFT_CAP: lambda logits, cap: torch.tanh(logits / cap) * cap,
    LogitStep.DIVIDE: lambda logits, divisor: logits / divisor,
    LogitStep.MULTIPLY: lambda logits, factor: logits * factor,
}
_TRIAL_TOKENS = 8
# The trial is made twice: as it is, and with the head's output this much larger, since logits near
# zero pass through a soft cap unchanged and would not show that one is there.
_GAINS = (1.0, 1000.0)


@dataclass(frozen=True)
class Split:
    """The halves of a causal LM.

    Attributes:
        model: the causal LM.
        vocabulary: logits of one token.
        backbone: input ids to features; None if the model could not be split.
        head: features to logits; None if the model could not be split.
    """

    model: Any
    vocabulary: int
    backbone: Any = None
    head: Any = None

    @property
    def whole(self) -> bool:
        """Whether the model could not be split, and its features are its logits."""
        return self.head is None

    def features(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """Features (batch, tokens, hidden) of input_ids (batch, tokens); if whole, the logits.

        Positions (batch, tokens) that start anew keep documents apart; None: they run on.
        """
        given = {"input_ids": input_ids}
        if position_ids is not None:
            given["position_ids"] = position_ids
        if self.whole:
            return self.model(**given, use_cache=False).logits
        return self.backbone(**given, use_cache=False).last_hidden_state

    def logits(self, features: Tensor) -> Tensor:
        """Logits (..., vocabulary) of features (..., hidden), in the dtype that the head gives."""
        if self.whole:
            return features
        logits = self.head(features)
        config = self.model.config.get_text_config()
        for name, step in LOGIT_STEPS.items():
            value = getattr(config, name, None)
            if value is not None:
                logits = _STEPS[step](logits, value)
        return logits

    def trained(self) -> list[nn.Parameter]:
        """Parameters of the head that are trained."""
        return [] if self.whole else [p for p in self.head.parameters() if p.requires_grad]

    @contextlib.contextmanager
    def preparing_head(self, features: Tensor) -> Iterator[list[Tensor]]:
        """Inside, `logits` may be asked for chunk after chunk of `features`.

        A weight on a grid is built once for all chunks. It is the largest of a small model, and
        building it takes longer than multiplying a chunk of 64 tokens by it.

        Yields:
            What the chunks' gradients are to be summed of.
        """
        if not isinstance(self.head, LRQATLinear):
            yield list(self.trained())
            return
        device = features.device.type
        if torch.is_autocast_enabled(device):
            features = features[:0].to(torch.get_autocast_dtype(device))
        with self.head.building_once(features) as weight:
            yield [weight] if weight.requires_grad else []


def split(model: Any, input_ids: Tensor) -> Split | None:
    """Split `model` at its output head, and verify it.

    Args:
        model: a Hugging Face causal LM, prepared by `lrqat.models.surgery` or not.
        input_ids: (batch, tokens), of which a few are run through both.

    Returns:
        The halves, or None: the model has no such halves, does something with its logits that is
        not in the table, or its head trains parameters that are not its own.
    """
    backbone, head = getattr(model, "base_model", None), _head_of(model)
    if backbone is None or backbone is model or head is None:
        return None
    trial = input_ids[:1, :_TRIAL_TOKENS]
    with evaluating(model), torch.no_grad():
        try:
            vocabulary = model(input_ids=trial, use_cache=False).logits.shape[-1]
            found = Split(model, vocabulary, backbone, head)
            agrees = all(_agrees(found, trial, gain) for gain in _GAINS)
        except (AttributeError, TypeError):  # a backbone that takes or returns something else
            return None
        return found if agrees and _trains_its_own(found, trial) else None


def split_or_whole(model: Any, input_ids: Tensor) -> Split:
    """`split`, or with a warning the model as a whole."""
    found = split(model, input_ids)
    if found is not None:
        return found
    warnings.warn(
        f"{type(model).__name__} computes its logits in a way that lrqat does not know, so they "
        "are kept for all tokens at once; if memory runs out, use a smaller --batch-size",
        stacklevel=2,
    )
    with evaluating(model), torch.no_grad():
        logits = model(input_ids=input_ids[:1, :_TRIAL_TOKENS], use_cache=False).logits
    return Split(model, logits.shape[-1])


def _head_of(model: Any) -> Any:
    get = getattr(model, "get_output_embeddings", None)
    return get() if get is not None else None


def _agrees(found: Split, trial: Tensor, gain: float) -> bool:
    """Whether both ways give the same logits when the head's output is `gain` times as large."""
    hook = found.head.register_forward_hook(lambda module, args, output: output * gain)
    try:
        expected = found.model(input_ids=trial, use_cache=False).logits
        logits = found.logits(found.features(trial))
    finally:
        hook.remove()
    if logits.shape != expected.shape or logits.dtype != expected.dtype:
        return False
    # The same operations in the same order: one rounding of the largest is already generous.
    bound = torch.finfo(logits.dtype).eps * expected.float().abs().max()
    return bool(((logits.float() - expected.float()).abs() <= bound).all())


def _trains_its_own(found: Split, trial: Tensor) -> bool:
    """Whether the parameters that reach the head's output are all parameters of the head.

    One that it only borrows would be missing from `Split.trained` and get no gradient.
    """
    features = found.features(trial)
    with torch.enable_grad():
        logits = found.logits(features)
    own = {id(parameter) for parameter in found.trained()}
    return all(id(leaf) in own for leaf in _leaves(logits))


def _leaves(tensor: Tensor) -> Iterator[Tensor]:
    """The leaf tensors with a gradient that `tensor` was computed from."""
    waiting, seen = [tensor.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [following for following, _ in node.next_functions]
