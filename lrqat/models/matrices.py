"""The weight matrices of a causal language model, and what is usually done with each.

Names and shapes are all that is read, so a model on the meta device will do.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lrqat.architectures import ROUTERS, ROUTERS_BESIDE_EXPERTS
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.models.text_part import TextPart
from lrqat.models.tying import is_tied
from lrqat.models.weight_use import misused_layers

# Reasons to leave a weight unquantized: until a pattern asks for a grid, and whatever one asks for
# (also those of `lrqat.models.weight_use`).
OUTPUT_HEAD, INPUT_EMBEDDING = "output head", "embedding"
ROUTER, WHOLE_STACK = "router", "stack of experts that its model does not take one by one"
HEAD_BIAS = "the output head is the same weight, and adds a bias to its products"


@dataclass(frozen=True)
class Matrix:
    """A weight matrix of the model and what is usually done with it."""

    shape: tuple[int, int]
    kind: WeightKind
    count: int = 1
    reason: str | None = None  # why it is left unquantized unless a pattern asks for it
    tied_to: str | None = None
    never: str | None = None  # why it is left unquantized whatever a pattern asks for

    @classmethod
    def of(cls, weight: Tensor, kind: WeightKind, reason: str | None, never: str | None) -> Self:
        """Of one matrix (out, in)."""
        rows, columns = weight.shape
        return cls((rows, columns), kind, 1, reason, never=never)


def find_matrices(model: nn.Module) -> Iterator[tuple[str, Matrix]]:
    """Every weight matrix of a model by name, the embedding first, each once."""
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    embedding: Any = getattr(model, "get_input_embeddings", lambda: None)()
    names = {module: name for name, module in model.named_modules()}
    tied = is_tied(model)
    text, misused = TextPart(model), misused_layers(model)
    for name, module in model.named_modules():
        if name not in text:
            continue
        never = misused.get(name)
        if isinstance(module, nn.Embedding) and module is embedding:
            tied_to = names[head] if tied else None
            if tied_to and never is None:
                has_bias = getattr(head, "bias", None) is not None
                never = misused.get(tied_to, HEAD_BIAS if has_bias else None)
            found = Matrix.of(module.weight, WeightKind.EMBEDDING, INPUT_EMBEDDING, never)
            yield name, replace(found, tied_to=tied_to)
        elif module is head:
            if not tied and isinstance(module, nn.Linear):
                yield name, Matrix.of(module.weight, WeightKind.LINEAR, OUTPUT_HEAD, never)
        elif _is_router(model, name):
            weight = getattr(module, "weight", None)
            if isinstance(weight, nn.Parameter) and weight.ndim == 2:
                yield name, Matrix.of(weight, WeightKind.LINEAR, ROUTER, ROUTER)
        elif isinstance(module, nn.Linear):
            yield name, Matrix.of(module.weight, WeightKind.LINEAR, None, never)
        elif isinstance(module, Conv1D):
            yield name, Matrix.of(module.weight.T, WeightKind.CONV1D, None, never)
        else:
            yield from _stacks(name, module)


def _is_router(model: nn.Module, name: str) -> bool:
    """Whether a module chooses experts, or is part of one that does."""
    parts = name.split(".")
    return not ROUTERS.isdisjoint(parts) or any(
        part in ROUTERS_BESIDE_EXPERTS
        and hasattr(model.get_submodule(".".join(parts[:i])), "experts")
        for i, part in enumerate(parts)
    )


def _stacks(name: str, module: nn.Module) -> Iterator[tuple[str, Matrix]]:
    """3-D parameters of a module of experts, each matrix (out, in)."""
    if not type(module).__name__.endswith("Experts"):
        return
    # Set by `use_experts_implementation` of transformers, whose eager code indexes its weights;
    # the others multiply the whole stack at once, or keep it as (experts, in, out).
    indexed = getattr(module, "is_transposed", None) is False
    for parameter, value in module.named_parameters(recurse=False):
        if value.ndim == 3:
            count, rows, columns = value.shape
            never = None if indexed else WHOLE_STACK
            found = Matrix((rows, columns), WeightKind.EXPERTS, count, never, never=never)
            yield f"{name}.{parameter}", found
