"""Putting a model's weights on their grids, one at a time.

Each original weight is dropped as soon as its frozen form exists. With `load` the model may start
on the meta device, and every weight is read from disk when its turn comes: then the model is never
in memory in full precision, not even once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lrqat.architectures import embedding_factor
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.errors import ModelError, UserError
from lrqat.grids.quantize import Scales
from lrqat.init.input_directions import InputDirections
from lrqat.init.lora_init import initialise
from lrqat.init.range_init import find_scales
from lrqat.init.starts import LORA_INITS
from lrqat.layers.embedding import LRQATEmbedding
from lrqat.layers.experts import LRQATExperts
from lrqat.layers.frozen import DOWNCASTS, downcast_for
from lrqat.layers.linear import LRQATLinear
from lrqat.layers.lora import LoRALinear
from lrqat.layers.methods import METHODS
from lrqat.layers.weight import QuantizedWeight
from lrqat.models.preparation_settings import Settings as Settings
from lrqat.models.preparation_settings import default_alpha
from lrqat.models.surgery import SurgeryPlan, Target
from lrqat.models.tying import is_tied


def prepare(
    model: Any,
    plan: SurgeryPlan,
    settings: Settings | None = None,
    *,
    importance: Mapping[str, Tensor] | None = None,
    directions: Mapping[str, InputDirections] | None = None,
    load: Callable[[str], Tensor] | None = None,
    progress: Any = None,
) -> Any:
    """Replace the planned weights by trained ones, in place, and freeze everything else.

    Args:
        model: the model that `plan` was made for, with its weights (or on meta, with `load`).
        plan: from `lrqat.models.surgery.plan_surgery`.
        settings: how.
        importance: module name -> (in,) mean square of each input channel, for `range_init`.
        directions: module name -> leading directions of its inputs, for `lora_init`. A module
            without any starts at random.
        load: parameter name -> its value, for a model on the meta device.
        progress: wraps the iterable of names (for one: `tqdm.tqdm`); None shows nothing.

    Returns:
        `model`, where only what the method trains requires gradients.

    Raises:
        UserError: settings that do not fit the plan, see `check_settings`.
        ModelError: a weight is not finite, or a head that was planned as tied is none.
    """
    settings = settings or Settings()
    check_settings(plan, settings)
    maker = _Maker(settings, importance or {}, directions or {})
    model.requires_grad_(False)
    names: Iterable[str] = list(plan.quantized)
    for name in progress(names) if progress else names:
        target = plan.quantized[name]
        _PLACERS[target.kind](model, name, target, maker, load or _own_values(model))
    _set_trained(model, settings)
    return model


def check_settings(plan: SurgeryPlan, settings: Settings) -> None:
    """Refuse settings that no weight, or not every weight, can take.

    Raises:
        UserError: a rank above a layer's smaller side, a form of the frozen weights that a grid
            refuses, or experts with a method that has linear layers of its own.
    """
    method, downcast = METHODS[settings.method], DOWNCASTS[settings.phi]
    reason = downcast.refuses(plan.grid)
    if reason:
        raise UserError(
            f"--phi {settings.phi} does not go with --grid {plan.grid.name}: {reason}; "
            "use --phi bf16"
        )
    for name, target in plan.quantized.items():
        if method.low_rank and settings.rank > min(target.shape):
            raise UserError(
                f"--rank {settings.rank} is larger than {name} ({target.shape[0]} x "
                f"{target.shape[1]}); give at most --rank {min(target.shape)}, or --keep it"
            )
        if method.layer is not LRQATLinear and target.kind == WeightKind.EXPERTS:
            raise UserError(
                f"--method {settings.method} does not train {name}, which is a stack of experts; "
                "leave it out with --keep"
            )


class _Maker:
    """Makes trained weights with one set of settings."""

    def __init__(
        self,
        settings: Settings,
        importance: Mapping[str, Tensor],
        directions: Mapping[str, InputDirections],
    ) -> None:
        self.settings = settings.with_starts(
            importance=bool(importance), directions=bool(directions)
        )
        self._importance, self._directions = importance, directions
        self.method = METHODS[settings.method]

    def weight(
        self, name: str, weight: Tensor, target: Target, kind: type[nn.Module], **extra: Any
    ) -> Any:
        """A `kind` (QuantizedWeight or one like it) of `weight` (out, in)."""
        if not torch.isfinite(weight).all():
            raise ModelError(
                f"{name}.weight holds NaN or infinity; use an intact copy of the model"
            )
        # An embedding is only rounded where the method's A and B belong to layers of its own.
        low_rank = self.method.low_rank and (self.method.rounds_inside or kind is self.method.layer)
        settled = target.settled and self.method.rounds_inside
        rank = self.settings.rank if low_rank and not settled else 0
        if settled and issubclass(kind, LRQATLinear):
            kind = LRQATLinear  # whose weight does not want to be trained
        alpha = self.settings.alpha
        made: Any = kind(
            weight,
            self._scales(name, weight, target),
            **extra,
            grid=target.grid,
            downcast=downcast_for(self.settings.phi, target.grid),
            rank=rank,
            alpha=default_alpha(rank) if alpha is None else float(alpha),
        )
        made.settled = settled
        if rank and name in self._directions and isinstance(made, QuantizedWeight):
            init = LORA_INITS[self.settings.lora_init]
            initialise(made, weight, self._directions[name], init)
        return made

    def _scales(self, name: str, weight: Tensor, target: Target) -> Scales:
        importance = self._importance.get(name)
        return find_scales(weight, target.grid, self.settings.range_init, importance)


def _place_linear(model: Any, name: str, target: Target, maker: _Maker, load: Any) -> None:
    module = model.get_submodule(name)
    weight = load(f"{name}.weight")
    weight = weight.T.contiguous() if target.kind == WeightKind.CONV1D else weight
    bias = None if module.bias is None else load(f"{name}.bias")
    model.set_submodule(name, maker.weight(name, weight, target, maker.method.layer, bias=bias))


def _place_embedding(model: Any, name: str, target: Target, maker: _Maker, load: Any) -> None:
    if target.tied_to and not is_tied(model):
        raise ModelError(
            f"{name} and {target.tied_to} were planned as one weight (tie_word_embeddings), and "
            "the weights are two that differ; set tie_word_embeddings to false in config.json"
        )
    embedding = model.get_submodule(name)
    weight = load(f"{name}.weight")
    kind = LRQATLinear if target.tied_to else QuantizedWeight
    table = maker.weight(name, weight, target, kind)
    model.set_submodule(name, LRQATEmbedding(table, weight.dtype, embedding_factor(embedding)))
    if target.tied_to:
        model.set_submodule(target.tied_to, table)


def _place_experts(model: Any, name: str, target: Target, maker: _Maker, load: Any) -> None:
    parent_name, _, parameter = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    stack = load(name)
    experts = [
        maker.weight(f"{name}.{i}", matrix, target, QuantizedWeight)
        for i, matrix in enumerate(stack)
    ]
    delattr(parent, parameter)
    setattr(parent, parameter, LRQATExperts(experts, stack.dtype))
    # The batched kernels of transformers take the whole stack at once; the eager code indexes it.
    model.config._experts_implementation = "eager"
    if hasattr(parent, "config"):
        parent.config._experts_implementation = "eager"


_PLACERS: dict[WeightKind, Callable[..., None]] = {
    WeightKind.LINEAR: _place_linear,
    WeightKind.CONV1D: _place_linear,
    WeightKind.EMBEDDING: _place_embedding,
    WeightKind.EXPERTS: _place_experts,
}


def _own_values(model: Any) -> Callable[[str], Tensor]:
    return lambda name: model.get_parameter(name).detach()


def _set_trained(model: nn.Module, settings: Settings) -> None:
    trains = METHODS[settings.method].trains
    for _, module in model.named_modules():
        if isinstance(module, QuantizedWeight | LoRALinear):
            for name, parameter in module.named_parameters(recurse=False):
                moves = name in trains and parameter.numel() > 0 and not module.settled
                parameter.requires_grad_(moves)


def freeze_scales(model: nn.Module) -> None:
    """Leave the scales and minima of a prepared model as they start."""
    for _, layer in quantized_layers(model):
        for parameter in (layer.scale, layer.minimum):
            if parameter is not None:
                parameter.requires_grad_(False)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedWeight]]:
    """Every trained weight of a prepared model, once, under its name in the checkpoint."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedWeight):
            yield name.removesuffix(".table"), module


@torch.no_grad()
def merge_and_round(
    model: Any,
    plan: SurgeryPlan,
    settings: Settings,
    importance: Mapping[str, Tensor] | None = None,
) -> Any:
    """What `lora-then-rtn` ends with: merge every LoRA layer and round it to its grid."""
    maker = _Maker(replace(settings, method="rtn"), importance or {}, {})
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            target = plan.quantized[name]
            made = maker.weight(name, module.merged(), target, LRQATLinear, bias=module.bias)
            model.set_submodule(name, made)
    _set_trained(model, maker.settings)
    return model
