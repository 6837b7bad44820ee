"""Adapters, added to the weights of a model.

    W + sum over adapters of  w s B A                  w: of the adapter, s: see `scales`
    m (W + s B A) / |W + s B A|                        DoRA; m (out,), norms of rows
    P                                                  a parameter that was trained whole

In float32, and rounded once to the weight's type, before anything is frozen. An embedding of other
tokens resizes the model. Source: peft, tuners/lora/layer.py `get_delta_weight`, and dora.py.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrqat.errors import ModelError
from lrqat.models.adapters.adapter import Adapter, LowRank
from lrqat.models.adapters.remedy import INSTEAD
from lrqat.models.tying import is_tied
from lrqat.named_numbers import name_and_number

_TOKENIZER = "tokenizer_config.json"


def folder_and_weight(entry: str) -> tuple[str, float]:
    """What an --adapter names: FOLDER, or FOLDER:WEIGHT where there is no folder of that name."""
    folder, weight = name_and_number(entry)
    return folder, 1.0 if weight is None else weight


@dataclass(frozen=True)
class Adapters:
    """Adapters of one model, with their weights."""

    parts: tuple[tuple[Adapter, float], ...]

    @classmethod
    def open(cls, entries: tuple[str, ...]) -> "Adapters":
        """Read what --adapter names.

        Raises:
            ModelError: one is none, is damaged, or cannot be merged, or not so with others.
        """
        named = [folder_and_weight(entry) for entry in entries]
        parts = tuple((Adapter.open(folder), weight) for folder, weight in named)
        for adapter, weight in parts:
            if not adapter.is_sum and (len(parts) > 1 or weight != 1):
                raise ModelError(
                    f"{adapter.folder} is DoRA, or has whole modules: it is what was trained only "
                    f"alone, and with the weight 1; give no other --adapter, or {INSTEAD}"
                )
        return cls(parts)

    @property
    def tokenizer(self) -> str | None:
        """The folder of one that has whole parameters, such as embeddings, and a tokenizer."""
        found = (a.folder for a, _ in self.parts if a.whole and (a.folder / _TOKENIZER).is_file())
        return next(map(str, found), None)

    def fit(self, model: Any) -> None:
        """Give `model`, which may be on the meta device, the vocabulary of the adapters.

        Raises:
            ModelError: a module or parameter that the model does not have, or of another shape; one
                that is the embedding and the head at once.
        """
        embedding = next(n for n, m in model.named_modules() if m is model.get_input_embeddings())
        for adapter, _ in self.parts:
            rows = len(adapter.whole.get(f"{embedding}.weight", ()))
            if rows and rows != model.get_input_embeddings().weight.shape[0]:
                model.resize_token_embeddings(rows, mean_resizing=False)
            for name, part in adapter.low_rank.items():
                _refuse_other_layer(adapter, model, name, part)
            _refuse_other_parameters(adapter, model, f"{embedding}.weight")

    @torch.no_grad()
    def merge(self, model: Any) -> None:
        """Change the weights of `model`, on whatever device. Raises as `fit`."""
        self.fit(model)
        for adapter, _ in self.parts:
            for name, value in adapter.whole.items():
                model.get_parameter(name).copy_(value)
        for name in dict.fromkeys(n for adapter, _ in self.parts for n in adapter.low_rank):
            weight = model.get_submodule(name).weight
            merged = weight.float()
            for adapter, share in self.parts:
                if name in adapter.low_rank:
                    merged = _merged(merged, adapter.low_rank[name], share)
            weight.copy_(merged)


def _merged(weight: Tensor, part: LowRank, share: float) -> Tensor:
    """A weight (out, in) in float32 with what one adapter does to it."""
    a, b = (each.to(weight.device, torch.float32) for each in (part.a, part.b))
    merged = weight + share * part.scale * (b @ a)
    if part.magnitude is None:
        return merged
    norms = merged.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return merged * (part.magnitude.to(weight.device, torch.float32)[:, None] / norms)


def _refuse_other_layer(adapter: Adapter, model: Any, name: str, part: LowRank) -> None:
    module = dict(model.named_modules()).get(name)
    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Linear) or not isinstance(weight, Tensor):
        raise ModelError(
            f"{adapter.folder} adapts {name:.80}, which is no linear layer of this "
            f"{type(model).__name__}; give the model that it was trained on, or {INSTEAD}"
        )
    _refuse_other_shape(adapter, name, (part.b.shape[0], part.a.shape[1]), weight)
    if module is model.get_output_embeddings() and is_tied(model):
        raise ModelError(f"{adapter.folder} adapts {name}, which is the embedding; {INSTEAD}")


def _refuse_other_parameters(adapter: Adapter, model: Any, embedding: str) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, value in adapter.whole.items():
        if name not in parameters:
            raise ModelError(
                f"{adapter.folder} has {name:.80} whole, which this {type(model).__name__} does "
                f"not have; give the model that it was trained on, or {INSTEAD}"
            )
        _refuse_other_shape(adapter, name, tuple(value.shape), parameters[name])
    head = model.get_output_embeddings()
    own = next((f"{n}.weight" for n, m in model.named_modules() if m is head), "")
    one, other = adapter.whole.get(embedding), adapter.whole.get(own)
    if other is not None and is_tied(model) and (one is None or not torch.equal(one, other)):
        raise ModelError(
            f"{adapter.folder} has a head of its own, which is the embedding in this model; "
            f"{INSTEAD}"
        )


def _refuse_other_shape(
    adapter: Adapter, name: str, shape: tuple[int, ...], parameter: Tensor
) -> None:
    if parameter.shape != shape:
        raise ModelError(
            f"{adapter.folder} has {name} with the shape {shape}, and the model's is "
            f"{tuple(parameter.shape)}; give the model that it was trained on"
        )
